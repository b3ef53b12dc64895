"""A Jinja2 template over a row's columns, sandboxed and strict. Touches: nothing.

Jinja2 takes its time to import, and many inputs hold their messages themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from batcher.errors import JobError

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["MissingColumn", "Template"]


class MissingColumn(ValueError):
    """A row lacks what the template asks for, or the template fails on it."""


def _shown(value: object) -> object:
    """What `{{ … }}` puts in; null would be the word None, and paid for."""
    if value is None:
        raise MissingColumn("template: a value it shows is null; see Jinja2's default(…, true)")
    return value


@cache
def _environment() -> Environment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=True, finalize=_shown
    )
    # `range` with a huge end would fill the memory; templates have loops over columns instead.
    environment.globals.clear()
    return environment


class Template:
    """One template, compiled once.

    >>> Template("--prompt", "Label: {{ text }}").render({"text": "hi"})
    'Label: hi'

    Attributes:
        names: Columns that the template mentions.

    Raises:
        JobError: The text is not a template.
    """

    def __init__(self, flag: str, text: str) -> None:
        from jinja2 import TemplateError, UndefinedError
        from jinja2.meta import find_undeclared_variables

        environment, self._undefined = _environment(), UndefinedError
        try:
            tree = environment.parse(text)
            self.names = frozenset(find_undeclared_variables(tree))
            self._render = environment.from_string(text).render
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            at = f" (line {line})" if line else ""
            raise JobError(
                f"{flag} is not a template: {error.message}{at}; see Jinja2's {{{{ name }}}}."
            ) from None

    def fits(self, columns: Mapping[str, object]) -> bool:
        """Whether the row has every column that the template mentions."""
        return self.names <= columns.keys()

    def render(self, columns: Mapping[str, object]) -> str:
        """The text for one row.

        Raises:
            MissingColumn: A column is missing, or the template fails on this row's values.
        """
        try:
            return self._render(columns)
        except MissingColumn:
            raise
        except self._undefined as error:
            have = ", ".join(columns) or "none"
            raise MissingColumn(f"template: {error.message} (the row has: {have})") from None
        except Exception as error:  # noqa: BLE001
            # Whatever a template does to a value of the wrong type is that row's failure.
            raise MissingColumn(f"template: {type(error).__name__}: {error}") from None
