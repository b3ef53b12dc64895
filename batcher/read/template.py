"""A Jinja2 template over a row's columns, sandboxed and strict. Touches: nothing."""

from __future__ import annotations

from collections.abc import Mapping

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from batcher.errors import JobError

__all__ = ["MissingColumn", "Template"]


class MissingColumn(ValueError):
    """A row lacks what the template asks for, or the template fails on it."""


def _shown(value: object) -> object:
    """What `{{ … }}` puts in; null would be the word None, and paid for."""
    if value is None:
        raise MissingColumn("template: a value it shows is null; see Jinja2's default(…, true)")
    return value


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_shown
)
# `range` with a huge end would fill the memory; templates have loops over columns instead.
_ENVIRONMENT.globals.clear()


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
        try:
            tree = _ENVIRONMENT.parse(text)
            self.names = frozenset(jinja2.meta.find_undeclared_variables(tree))
            self._render = _ENVIRONMENT.from_string(text).render
        except jinja2.TemplateError as error:
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
        except jinja2.UndefinedError as error:
            have = ", ".join(columns) or "none"
            raise MissingColumn(f"template: {error.message} (the row has: {have})") from None
        except Exception as error:  # noqa: BLE001
            # Whatever a template does to a value of the wrong type is that row's failure.
            raise MissingColumn(f"template: {type(error).__name__}: {error}") from None
