"""A Jinja2 template over a row's columns, sandboxed and strict. Touches: nothing.

`{{ order.items }}` is the item of that name and `order.items()` the method. What has no text
(methods, bytes, the whole row) is never put into a prompt, as Python's words for it differ from
process to process; objects and lists are JSON. `{{ row['Review Text'] }}` is a column whose name is no
identifier.

Jinja2 takes its time to import, and many inputs hold their messages themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cache, wraps
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from batcher.errors import JobError

if TYPE_CHECKING:
    from jinja2 import Environment, nodes

__all__ = ["MissingColumn", "Template"]

_ROW, _ROW_ITSELF = "row", "batcher_row"
_SCALARS = (str, int, float, Decimal, date, time, timedelta, UUID)
# Jinja2's filters that make a text of what they are given.
_OF_TEXT = (
    *("capitalize", "center", "e", "escape", "forceescape", "indent", "lower", "replace", "safe"),
    *("striptags", "title", "trim", "truncate", "upper", "urlize", "wordcount", "wordwrap"),
)
_EXPRESSION = re.compile(r"\{\{-?([^{}]{1,200}?)-?\}\}|\{([^{}]{1,200})\}")


_WHOLE = "template: it takes the whole row; name a column of it, such as row['text']"


class MissingColumn(ValueError):
    """A row lacks what the template asks for, or the template fails on it."""


class _Row:
    """All columns of a row, of which one at a time can be shown."""

    def __init__(self, columns: Mapping[str, object]) -> None:
        self.columns = columns

    def __iter__(self) -> Iterator[str]:
        raise MissingColumn(_WHOLE)


class _Method:
    """A method of a value, which can be called and not shown."""

    def __init__(self, method: Any, name: str) -> None:
        self.method = method
        self.name = name

    def __str__(self) -> str:
        raise MissingColumn(
            f"template: {self.name} is a method; call it, or name a field of the row"
        )

    __repr__ = __str__


def _shown(value: object) -> object:
    """What `{{ … }}` puts in; null would be the word None, and paid for."""
    if type(value) is str:
        return value
    if value is None:
        raise MissingColumn("template: a value it shows is null; see Jinja2's default(…, true)")
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, dict | list | tuple):
        return _json(value)
    if isinstance(value, _Row):
        raise MissingColumn(_WHOLE)
    from jinja2 import Undefined

    if isinstance(value, Undefined | _Method):
        return str(value)  # Raises, and says why.
    raise MissingColumn(f"template: a value it shows is {_kind(value)}, which has no text")


class _Named(dict[str, object]):
    """An object behind `%`: shown as JSON as a whole, or each of its items as it is in braces."""

    def __getitem__(self, name: str) -> object:
        return _shown(super().__getitem__(name))

    def __str__(self) -> str:
        return _json(self)

    __repr__ = __str__


def _operand(value: object) -> object:
    """What stands behind `%`, which puts it into a text, or divides by it."""
    if isinstance(value, dict):
        return _Named(value)
    return tuple(map(_shown, value)) if isinstance(value, tuple) else _shown(value)


def _of_text(function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, given what `{{ … }}` would put in."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def of_shown(*given: Any, **named: Any) -> Any:
        value, *rest = given[first:]
        rest = [one if one is None else _shown(one) for one in rest]
        return function(*given[:first], _shown(value), *rest, **named)

    return of_shown


def _format(text: object, *given: object, **named: object) -> object:
    return str(_shown(text)) % (_Named(named) if named else tuple(map(_shown, given)))


def _json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_json_value)
    except MissingColumn:
        raise
    except ValueError:  # NaN and infinity, which are null in JSON.
        plain = msgspec.json.decode(msgspec.json.encode(value, enc_hook=_json_value))
        return json.dumps(plain, ensure_ascii=False)


def _json_value(value: object) -> object:
    if isinstance(value, Decimal):
        number = float(value)
        return number if Decimal(repr(number)) == value else str(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta | UUID):
        return str(value)
    raise MissingColumn(f"template: an object it shows holds {_kind(value)}, which has no text")


def _kind(value: object) -> str:
    return "a function" if callable(value) else f"of the kind {type(value).__name__}"


@cache
def _environment() -> Environment:
    from jinja2 import StrictUndefined, Undefined, pass_environment
    from jinja2.filters import make_attrgetter
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

    class Formatter(SandboxedFormatter):
        def convert_field(self, value: Any, conversion: Any) -> Any:
            return super().convert_field(_shown(value), conversion)

    class Sandbox(ImmutableSandboxedEnvironment):
        def getattr(self, obj: Any, attribute: str) -> Any:
            if isinstance(obj, _Row):
                return self.getitem(obj, attribute)
            if isinstance(obj, Mapping) and attribute in obj:
                return obj[attribute]
            return self.method(obj, attribute)

        def method(self, obj: Any, attribute: str) -> Any:
            if isinstance(obj, _Row):
                raise MissingColumn(_WHOLE)
            if isinstance(obj, str) and attribute == "format":
                return _Method(
                    lambda *given, **named: Formatter(self).vformat(obj, given, named), attribute
                )
            if isinstance(obj, str) and attribute == "format_map":
                return _Method(
                    lambda columns: Formatter(self).vformat(obj, (), columns), attribute
                )
            value = super().getattr(obj, attribute)
            is_data = isinstance(value, Undefined) or not callable(value)
            return value if is_data else _Method(value, attribute)

        def getitem(self, obj: Any, argument: Any) -> Any:
            if isinstance(obj, _Row):
                obj = obj.columns
                if argument not in obj:
                    return self.undefined(name=str(argument))
            if isinstance(obj, Mapping):
                return obj[argument] if argument in obj else self.undefined(obj=obj, name=argument)
            value = super().getitem(obj, argument)
            is_data = isinstance(value, Undefined) or not callable(value)
            return value if is_data else _Method(value, str(argument))

        def call(self, context: Any, function: Any, /, *args: Any, **named: Any) -> Any:
            if isinstance(function, _Method):
                function = function.method
            of, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
            if isinstance(of, str) and name == "format":
                return Formatter(self).vformat(of, args, named)
            if isinstance(of, str) and name == "format_map":
                return Formatter(self).vformat(of, (), *args)
            return super().call(context, function, *args, **named)

    @pass_environment
    def method(environment: Sandbox, value: Any, name: str) -> Any:
        return environment.method(value, name)

    @pass_environment
    def attr(environment: Environment, value: Any, name: str) -> Any:
        return environment.getattr(value, name)

    @pass_environment
    def join(
        environment: Environment, values: Iterable[Any], d: str = "", attribute: Any = None
    ) -> str:
        if attribute is not None:
            values = map(make_attrgetter(environment, attribute), values)
        return d.join(str(_shown(value)) for value in values)

    environment = Sandbox(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_shown)
    # `range` with a huge end would fill the memory; templates have loops over columns instead.
    environment.globals.clear()
    environment.filters |= {"attr": attr, "join": join, "string": lambda value: str(_shown(value))}
    environment.filters |= {"shown": _shown, "method": method, "operand": _operand}
    environment.filters |= {name: _of_text(environment.filters[name]) for name in _OF_TEXT}
    environment.filters |= {"format": _format, "pprint": environment.filters["string"]}
    # Each start would send other words, and pay for them.
    del environment.filters["random"]
    return environment


class Template:
    """One template, compiled once.

    >>> Template("--prompt", "Label: {{ text }}").render({"text": "hi"})
    'Label: hi'
    >>> Template("--prompt", "{{ row['My text'] }} {{ a }}").render({"My text": "hi", "a": [True]})
    'hi [true]'

    Attributes:
        names: Columns that the template mentions.
        flag: The option that it comes from.
        text: As it was given.

    Raises:
        JobError: The text is not a template.
    """

    def __init__(self, flag: str, text: str) -> None:
        from jinja2 import TemplateError, UndefinedError
        from jinja2.meta import find_undeclared_variables

        environment, self._undefined = _environment(), UndefinedError
        self.flag, self.text = flag, text
        try:
            tree = environment.parse(text)
            by_row = _by_row(flag, tree)
            names = find_undeclared_variables(tree)
            self._takes_row = bool(by_row) or _ROW in names
            self.names = frozenset((names - {_ROW_ITSELF}) | by_row)
            _settle(tree)
            self._render = environment.from_string(tree).render
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            at = f" (line {line})" if line else ""
            raise JobError(
                f"{flag} is not a template: {error.message}{at}; see Jinja2's {{{{ name }}}}"
                f"{_meant(text)}."
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
            if self._takes_row:
                row = _Row(columns)
                return self._render({_ROW: row, **columns, _ROW_ITSELF: row})
            return self._render(columns)
        except MissingColumn:
            raise
        except self._undefined as error:
            have = ", ".join(columns) or "none"
            why = f"{error.message} (the row has: {have})"
            raise MissingColumn(
                f"template: {why}{_written(columns, error.message or '')}"
            ) from None
        except Exception as error:  # noqa: BLE001
            # Whatever a template does to a value of the wrong type is that row's failure.
            raise MissingColumn(f"template: {type(error).__name__}: {error}") from None

    def expression(self, columns: Mapping[str, object]) -> str:
        """What a template that names no column may mean: a column in other braces or in quotes, else any.

        >>> Template("--prompt", "Label this: {text}").expression({"id": 7, "text": "hi"})
        '{{ text }}'
        """
        told = {
            part.strip().strip("'\"") for found in _EXPRESSION.findall(self.text) for part in found
        }
        named = [name for name in columns if name in told]
        texts = [
            name
            for name, value in columns.items()
            if name and isinstance(value, str) and name != "custom_id"
        ]
        return _expression(next(iter([*named, *texts, *columns]), "name"))


def _by_row(flag: str, tree: nodes.Template) -> set[str]:
    """Columns that a template names as row['…']; there "row" is the row, whatever its columns are.

    Raises:
        JobError: It takes a column whose name is not written there.
    """
    from jinja2 import nodes
    from jinja2.meta import find_undeclared_variables

    if _ROW not in find_undeclared_variables(tree):
        return set()
    if any(name.name == _ROW and name.ctx != "load" for name in tree.find_all(nodes.Name)):
        raise JobError(
            f'{flag}: "row" is the input row; give the variable of that name another one.'
        )
    found = set()
    node: Any
    for node in tree.find_all((nodes.Getitem, nodes.Getattr)):
        of = node.node
        if not isinstance(of, nodes.Name) or of.name != _ROW:
            continue
        if isinstance(node, nodes.Getattr):
            found.add(node.attr)
        elif isinstance(node.arg, nodes.Const):
            found.add(str(node.arg.value))
            node.arg.value = str(node.arg.value)
        else:
            raise JobError(f"{flag}: row[…] takes the name of a column, such as row['text'].")
        of.name = _ROW_ITSELF
    return found


def _settle(tree: nodes.Template) -> None:
    """Has what `~` and `%` put in shown as in braces, and methods found where they are called."""
    from jinja2 import nodes

    for call in tree.find_all(nodes.Call):
        if isinstance(of := call.node, nodes.Getattr):
            name = nodes.Const(of.attr, lineno=of.lineno)
            call.node = nodes.Filter(of.node, "method", [name], [], None, None, lineno=of.lineno)

    for joined in tree.find_all(nodes.Concat):
        joined.nodes = [
            nodes.Filter(of, "shown", [], [], None, None, lineno=of.lineno) for of in joined.nodes
        ]
    for rest in tree.find_all(nodes.Mod):
        rest.right = nodes.Filter(rest.right, "operand", [], [], None, None, lineno=rest.lineno)
    tree.set_environment(_environment())


def _expression(name: str) -> str:
    return f"{{{{ {name if name.isidentifier() else f'row[{name!r}]'} }}}}"


def _written(columns: Mapping[str, object], message: str) -> str:
    """How a column is written whose name is no identifier, if the row has one."""
    odd = [name for name in columns if not name.isidentifier()]
    if not odd:
        return ""
    quoted = message.split("'")
    missing = quoted[1] if len(quoted) > 2 else ""
    name = next((name for name in odd if missing and name.startswith(missing)), odd[0])
    return f"; a name such as {name!r} is written {_expression(name)}"


def _meant(text: str) -> str:
    """How the first thing in braces is written that looks like the name of a column, and is none."""
    for told, _single in _EXPRESSION.findall(text):
        name = told.strip()
        if re.fullmatch(r"[\w .#&/-]+", name) and not name.isidentifier():
            return f", and {_expression(name)} for a column of that name"
    return ""
