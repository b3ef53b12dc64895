"""A Jinja2 template over a row's columns, sandboxed and strict. Touches: nothing.

`{{ order.items }}` is the item of that name, `order.items()` the method. Objects and lists become JSON. Methods,
bytes and the whole row never get into a prompt: Python's text for them differs from process to process.
`{{ row['Review Text'] }}` is a column whose name is not an identifier.

Jinja2 is imported late: it is slow to import, and many inputs hold their messages themselves.
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
# Jinja2's filters that convert their value to text.
_TEXT_FILTERS = (
    *("capitalize", "center", "e", "escape", "forceescape", "indent", "lower", "replace", "safe"),
    *("striptags", "title", "trim", "truncate", "upper", "urlize", "wordcount", "wordwrap"),
)
_EXPRESSION = re.compile(r"\{\{-?([^{}]{1,200}?)-?\}\}|\{([^{}]{1,200})\}")


_WHOLE_ROW = "template: it takes the whole row; name a column of it, such as row['text']"


class MissingColumn(ValueError):
    """A row lacks a column of the template, or the template fails on it."""


class _Row:
    """The variable `row`: all columns, of which a template can show one at a time."""

    def __init__(self, columns: Mapping[str, object]) -> None:
        self.columns = columns

    def __iter__(self) -> Iterator[str]:
        raise MissingColumn(_WHOLE_ROW)


class _Method:
    """A method of a value, which a template can call and not show."""

    def __init__(self, method: Any, name: str) -> None:
        self.method = method
        self.name = name

    def __str__(self) -> str:
        raise MissingColumn(
            f"template: {self.name} is a method; call it, or name a field of the row"
        )

    __repr__ = __str__


def _shown(value: object) -> object:
    """Converts a value to what `{{ … }}` inserts; null is an error, since it would insert the word None."""
    if type(value) is str:
        return value
    if value is None:
        raise MissingColumn("template: a value it shows is null; see Jinja2's default(…, true)")
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, dict | list | tuple):
        return _json(value)
    if isinstance(value, _Row):
        raise MissingColumn(_WHOLE_ROW)
    from jinja2 import Undefined

    if isinstance(value, Undefined | _Method):
        return str(value)  # Raises the error that says why.
    raise MissingColumn(f"template: a value it shows is {_kind(value)}, which has no text")


class _Named(dict[str, object]):
    """An object behind `%`: inserted as JSON, or item by item as in braces."""

    def __getitem__(self, name: str) -> object:
        return _shown(super().__getitem__(name))

    def __str__(self) -> str:
        return _json(self)

    __repr__ = __str__


def _operand(value: object) -> object:
    """Converts the right side of `%`, which may format or divide."""
    if isinstance(value, dict):
        return _Named(value)
    return tuple(map(_shown, value)) if isinstance(value, tuple) else _shown(value)


def _of_text(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a filter so that it gets what `{{ … }}` would insert."""
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
    except ValueError:  # JSON has no NaN and infinity; they become null.
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
                raise MissingColumn(_WHOLE_ROW)
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
            text, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
            if isinstance(text, str) and name == "format":
                return Formatter(self).vformat(text, args, named)
            if isinstance(text, str) and name == "format_map":
                return Formatter(self).vformat(text, (), *args)
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
    # `range` with a huge end would fill the memory; templates can loop over columns.
    environment.globals.clear()
    environment.filters |= {"attr": attr, "join": join, "string": lambda value: str(_shown(value))}
    environment.filters |= {"shown": _shown, "method": method, "operand": _operand}
    environment.filters |= {name: _of_text(environment.filters[name]) for name in _TEXT_FILTERS}
    environment.filters |= {"format": _format, "pprint": environment.filters["string"]}
    # Each start would send another prompt, and pay for it.
    del environment.filters["random"]
    return environment


class Template:
    """One template, compiled once.

    >>> Template("--prompt", "Label: {{ text }}").render({"text": "hi"})
    'Label: hi'
    >>> Template("--prompt", "{{ row['My text'] }} {{ a }}").render({"My text": "hi", "a": [True]})
    'hi [true]'

    Attributes:
        names: The columns that the template names.
        flag: The option that it comes from.
        text: The text of the template.

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
            _convert(tree)
            self._render = environment.from_string(tree).render
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            at = f" (line {line})" if line else ""
            raise JobError(
                f"{flag} is not a template: {error.message}{at}; see Jinja2's {{{{ name }}}}"
                f"{_hint(text)}."
            ) from None

    def fits(self, columns: Mapping[str, object]) -> bool:
        """Whether the row has every column that the template names."""
        return self.names <= columns.keys()

    def render(self, columns: Mapping[str, object]) -> str:
        """Renders the text for one row.

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
                f"template: {why}{_row_hint(columns, error.message or '')}"
            ) from None
        except Exception as error:  # noqa: BLE001
            # Anything may fail on a value of the wrong type; only that row fails.
            raise MissingColumn(f"template: {type(error).__name__}: {error}") from None

    def expression(self, columns: Mapping[str, object]) -> str:
        """Suggests an expression for a template that names no column: of a column it has in braces, else of any.

        >>> Template("--prompt", "Label this: {text}").expression({"id": 7, "text": "hi"})
        '{{ text }}'
        """
        written = {
            part.strip().strip("'\"") for found in _EXPRESSION.findall(self.text) for part in found
        }
        named = [name for name in columns if name in written]
        texts = [
            name
            for name, value in columns.items()
            if name and isinstance(value, str) and name != "custom_id"
        ]
        return _expression(next(iter([*named, *texts, *columns]), "name"))


def _by_row(flag: str, tree: nodes.Template) -> set[str]:
    """The columns that a template names as row['…'], where "row" is made to be the row itself.

    Raises:
        JobError: The name of a column is computed, or the template sets a variable "row".
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
        variable = node.node
        if not isinstance(variable, nodes.Name) or variable.name != _ROW:
            continue
        if isinstance(node, nodes.Getattr):
            found.add(node.attr)
        elif isinstance(node.arg, nodes.Const):
            found.add(str(node.arg.value))
            node.arg.value = str(node.arg.value)
        else:
            raise JobError(f"{flag}: row[…] takes the name of a column, such as row['text'].")
        variable.name = _ROW_ITSELF
    return found


def _convert(tree: nodes.Template) -> None:
    """Makes `~` and `%` insert values as braces do, and calls find methods before items."""
    from jinja2 import nodes

    for call in tree.find_all(nodes.Call):
        if isinstance(get := call.node, nodes.Getattr):
            name = nodes.Const(get.attr, lineno=get.lineno)
            call.node = nodes.Filter(get.node, "method", [name], [], None, None, lineno=get.lineno)
    for joined in tree.find_all(nodes.Concat):
        joined.nodes = [
            nodes.Filter(part, "shown", [], [], None, None, lineno=part.lineno)
            for part in joined.nodes
        ]
    for rest in tree.find_all(nodes.Mod):
        rest.right = nodes.Filter(rest.right, "operand", [], [], None, None, lineno=rest.lineno)
    tree.set_environment(_environment())


def _expression(name: str) -> str:
    return f"{{{{ {name if name.isidentifier() else f'row[{name!r}]'} }}}}"


def _row_hint(columns: Mapping[str, object], message: str) -> str:
    """A hint on columns whose names are not identifiers, if the row has one."""
    odd = [name for name in columns if not name.isidentifier()]
    if not odd:
        return ""
    quoted = message.split("'")
    missing = quoted[1] if len(quoted) > 2 else ""
    name = next((name for name in odd if missing and name.startswith(missing)), odd[0])
    return f"; a name such as {name!r} is written {_expression(name)}"


def _hint(text: str) -> str:
    """A hint on the first name in braces that is not an identifier."""
    for written, _single in _EXPRESSION.findall(text):
        name = written.strip()
        if re.fullmatch(r"[\w .#&/-]+", name) and not name.isidentifier():
            return f", and {_expression(name)} for a column of that name"
    return ""
