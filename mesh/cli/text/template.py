"""A small part of Go's text/template, as `docker --format` takes it.

What there is: fields (`.Name`, `.Spec.Labels.zone`, `.`, `$`), text and numbers, pipes, parentheses, `if`, `else`,
`range`, `with`, trimming (`{{-`, `-}}`), comments, and the functions in `FUNCTIONS`. Fields are found whatever
their case and underscores, so that `.Spec.Name` and `.spec.name` are the same. A field that a record does not have is
an error that lists those it has. Not there: variables, definitions, methods.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mesh.cli.text import TextError

# A template is typed by hand; what is larger or deeper is not one.
LENGTH_MAX = 16 * 1024
DEPTH_MAX = 32


class Record(dict[str, object]):
    """A mapping with a fixed set of fields: asking for another one is a mistake, not an empty value."""


@dataclass(frozen=True, slots=True)
class _Field:
    names: tuple[str, ...]
    of_root: bool = False


@dataclass(frozen=True, slots=True)
class _Constant:
    value: object


@dataclass(frozen=True, slots=True)
class _Call:
    function: str
    arguments: tuple[_Expression, ...]


@dataclass(frozen=True, slots=True)
class _Text:
    text: str


@dataclass(frozen=True, slots=True)
class _Print:
    expression: _Expression


@dataclass(frozen=True, slots=True)
class _Block:
    """`keyword` is if, with or range; `body` is used once, or for each item; `otherwise` when there is nothing."""

    keyword: str
    expression: _Expression
    body: tuple[_Part, ...]
    otherwise: tuple[_Part, ...]


_Expression = _Field | _Constant | _Call
_Part = _Text | _Print | _Block


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template."""

    parts: tuple[_Part, ...]

    def render(self, data: object) -> str:
        """The text for one value. Raises TextError."""
        out: list[str] = []
        _render(self.parts, data, data, out)
        return "".join(out)


_ACTION = re.compile(r"\{\{(?:-(?=\s))?(.*?)(?:(?<=\s)-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)|(?P<number>-?[0-9]+(?:\.[0-9]+)?)
    |(?P<field>\$?(?:\.[A-Za-z0-9_]+)+|\.|\$)|(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<mark>[|()]))""",
    re.VERBOSE,
)
_WORDS: dict[str, object] = {"true": True, "false": False, "nil": None}


def parse_template(text: str) -> Template:
    """Read a template; the two characters `\\t` and `\\n` are a tab and a newline, as in Docker. Raises TextError."""
    if len(text) > LENGTH_MAX:
        raise TextError(f"the template is longer than {LENGTH_MAX} characters")
    parser = _Parser(_split(_unescape(text)))
    parts, end = parser.parts(0)
    if end:
        raise TextError(f"template: {{{{{end}}}}} without a beginning")
    return Template(parts)


def _unescape(text: str) -> str:
    return text.replace("\\t", "\t").replace("\\n", "\n")


def _split(text: str) -> list[tuple[bool, str]]:
    """(is an action, its text) in order, trimming done."""
    pieces: list[tuple[bool, str]] = []
    position, trim = 0, False
    for match in _ACTION.finditer(text):
        before = text[position : match.start()]
        before = before.lstrip() if trim else before
        pieces.append((False, before.rstrip() if match[0].startswith("{{- ") else before))
        pieces.append((True, match[1].strip()))
        position, trim = match.end(), match[0].endswith(" -}}")
    rest = text[position:]
    if "{{" in rest:
        raise TextError("template: {{ without }}")
    return [*pieces, (False, rest.lstrip() if trim else rest)]


class _Parser:
    """Recursive descent over the pieces of a template."""

    def __init__(self, pieces: list[tuple[bool, str]]) -> None:
        self._pieces, self._next = pieces, 0

    def parts(self, depth: int) -> tuple[tuple[_Part, ...], str]:
        """Parts up to the action that ends them ("end", "else", "else if ..." or "" at the end of the text)."""
        if depth > DEPTH_MAX:
            raise TextError(f"template: nested deeper than {DEPTH_MAX}")
        parts: list[_Part] = []
        while self._next < len(self._pieces):
            is_action, text = self._pieces[self._next]
            self._next += 1
            keyword, _, rest = text.partition(" ")
            if not is_action:
                parts += [_Text(text)] if text else []
            elif text.startswith("/*") and text.endswith("*/"):
                continue
            elif keyword in ("if", "with", "range"):
                parts.append(self._block(keyword, rest, depth))
            elif keyword in ("end", "else"):
                return tuple(parts), text
            else:
                parts.append(_Print(_expression(text)))
        return tuple(parts), ""

    def _block(self, keyword: str, condition: str, depth: int) -> _Block:
        expression = _expression(condition)
        body, end = self.parts(depth + 1)
        otherwise: tuple[_Part, ...] = ()
        if end.startswith("else if "):
            return _Block(keyword, expression, body, (self._block("if", end.removeprefix("else if "), depth + 1),))
        if end == "else":
            otherwise, end = self.parts(depth + 1)
        if end != "end":
            raise TextError(f"template: {{{{{keyword} {condition}}}}} without {{{{end}}}}")
        return _Block(keyword, expression, body, otherwise)


def _expression(text: str) -> _Expression:
    tokens: list[tuple[str, str]] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise TextError(f"template: cannot read {{{{{text}}}}}")
        tokens.append((match.lastgroup, match[match.lastgroup]))
        position = match.end()
    expression, rest = _pipeline(tokens, text, 0)
    if rest:
        raise TextError(f"template: cannot read {{{{{text}}}}}")
    return expression


_Tokens = list[tuple[str, str]]


def _pipeline(tokens: _Tokens, text: str, depth: int) -> tuple[_Expression, _Tokens]:
    """Commands joined by `|`: the value of each is the last argument of the next."""
    if depth > DEPTH_MAX:
        raise TextError(f"template: nested deeper than {DEPTH_MAX}")
    value: _Expression | None = None
    while True:
        command, tokens = _command(tokens, text, value, depth)
        value = command
        if not tokens or tokens[0] != ("mark", "|"):
            return value, tokens
        tokens = tokens[1:]


def _command(tokens: _Tokens, text: str, piped: _Expression | None, depth: int) -> tuple[_Expression, _Tokens]:
    if tokens and tokens[0][0] == "word" and tokens[0][1] not in _WORDS:
        function, tokens = tokens[0][1], tokens[1:]
        if function not in FUNCTIONS:
            raise TextError(f'template: no function "{function}": there are {", ".join(FUNCTIONS)}')
        arguments: list[_Expression] = []
        while tokens and tokens[0] not in (("mark", "|"), ("mark", ")")):
            argument, tokens = _operand(tokens, text, depth)
            arguments.append(argument)
        return _Call(function, (*arguments, *((piped,) if piped is not None else ()))), tokens
    if piped is not None:
        raise TextError(f"template: {{{{{text}}}}}: only a function can follow |")
    return _operand(tokens, text, depth)


def _operand(tokens: _Tokens, text: str, depth: int) -> tuple[_Expression, _Tokens]:
    match tokens[0] if tokens else ("", ""):
        case ("string", quoted):
            return _Constant(quoted[1:-1] if quoted[0] == "`" else _unquote(quoted)), tokens[1:]
        case ("number", number):
            return _Constant(float(number) if "." in number else int(number)), tokens[1:]
        case ("field", path):
            names = tuple(name for name in path.removeprefix("$").split(".") if name)
            return _Field(names, of_root=path.startswith("$")), tokens[1:]
        case ("word", word) if word in _WORDS:
            return _Constant(_WORDS[word]), tokens[1:]
        case ("word", word) if word in FUNCTIONS:
            return _Call(word, ()), tokens[1:]
        case ("mark", "("):
            inner, rest = _pipeline(tokens[1:], text, depth + 1)
            if rest[:1] == [("mark", ")")]:
                return inner, rest[1:]
        case _:
            pass
    raise TextError(f"template: cannot read {{{{{text}}}}}")


def _unquote(quoted: str) -> str:
    try:
        return str(json.loads(quoted, strict=False))
    except json.JSONDecodeError as error:
        raise TextError(f"template: cannot read {quoted}") from error


# --- evaluation -----------------------------------------------------------------------------------------------------


def _render(parts: Sequence[_Part], data: object, root: object, out: list[str]) -> None:
    for part in parts:
        match part:
            case _Text(text):
                out.append(text)
            case _Print(expression):
                out.append(go_text(_value(expression, data, root)))
            case _Block():
                _render_block(part, data, root, out)


def _render_block(block: _Block, data: object, root: object, out: list[str]) -> None:
    value = _value(block.expression, data, root)
    if not value:
        _render(block.otherwise, data, root, out)
    elif block.keyword == "range":
        for item in _items(value):
            _render(block.body, item, root, out)
    else:
        _render(block.body, value if block.keyword == "with" else data, root, out)


def _items(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return value
    raise TextError(f"template: range over {go_text(value)}, which is no list")


def _value(expression: _Expression, data: object, root: object) -> object:
    match expression:
        case _Constant(value):
            return value
        case _Field(names, of_root):
            value = root if of_root else data
            for name in names:
                value = _field(value, name)
            return value
        case _Call(function, arguments):
            values = [_value(argument, data, root) for argument in arguments]
            try:
                return FUNCTIONS[function](*values)
            except (TypeError, IndexError, KeyError, ValueError, AttributeError) as error:
                raise TextError(f"template: {function} cannot be used like this") from error


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _field(value: object, name: str) -> object:
    if not isinstance(value, Mapping):
        raise TextError(f"template: {go_text(value)} has no field {name}")
    if name in value:
        return value[name]
    for key, item in value.items():
        if _plain(key) == _plain(name):
            return item
    if isinstance(value, Record):
        raise TextError(f"template: no field {name}: there are {', '.join(value)}")
    return ""


def go_text(value: object) -> str:
    """A value as Go prints it."""
    match value:
        case bool():
            return "true" if value else "false"
        case None:
            return "<no value>"
        case str():
            return value
        case float():
            return f"{value:g}"
        case Mapping():
            return "map[" + " ".join(f"{key}:{go_text(value[key])}" for key in sorted(value)) + "]"
        case Sequence():
            return "[" + " ".join(go_text(item) for item in value) + "]"
        case _:
            return str(value)


def _index(value: object, *keys: object) -> object:
    for key in keys:
        value = value.get(key, "") if isinstance(value, Mapping) else value[key]  # type: ignore[index]
    return value


def _printf(form: str, *values: object) -> str:
    given = iter(values)

    def one(match: re.Match[str]) -> str:
        if match[2] == "%":
            return "%"
        value = next(given, "%!(MISSING)")
        shown = json.dumps(value) if match[2] == "q" else go_text(value)
        return f"%{match[1]}s" % shown

    return re.sub(r"%(-?[0-9]{0,3})([svdq%])", one, form)


def _or(*values: object) -> object:
    return next((value for value in values if value), values[-1])


def _and(*values: object) -> object:
    return next((value for value in values if not value), values[-1])


def _pad(text: str, left: int, right: int) -> str:
    return " " * min(left, 1000) + text + " " * min(right, 1000) if text else text


FUNCTIONS: dict[str, Callable[..., object]] = {
    "json": lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")),
    "upper": lambda text: text.upper(),
    "lower": lambda text: text.lower(),
    "title": lambda text: text[:1].upper() + text[1:],
    "join": lambda items, separator: separator.join(go_text(item) for item in items),
    "split": lambda text, separator: text.split(separator),
    "truncate": lambda text, length: text[:length],
    "pad": _pad,
    "len": len,
    "index": _index,
    "printf": _printf,
    "println": lambda *values: " ".join(go_text(value) for value in values) + "\n",
    "eq": lambda first, *others: first in others,
    "ne": lambda one, other: one != other,
    "lt": lambda one, other: one < other,
    "gt": lambda one, other: one > other,
    "and": _and,
    "or": _or,
    "not": lambda value: not value,
}
