"""Regular expressions that a peer may choose: matched in time linear in the text, whatever they are. Pure.

A query carries expressions (Go's syntax) that every node of a cluster applies to its tags. Python's own engine can be
made to take hours by ten characters, so the expression is compiled to a small automaton, all states of which are
followed at once (Thompson 1968, as told by Cox, "Regular Expression Matching: the Virtual Machine Approach").

Understood: literals, `.`, classes, `\\d \\w \\s` and their opposites, groups, `|`, `* + ? {m,n}` (greedy or not is the
same here), `^ $`, `\\A \\z`, `\\b`, and `(?i)` in front. Anything else is a PatternError, and matches nothing.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

# Longer ones are nobody's; and what they compile to is bounded too: {1000}{1000} is short.
SOURCE_MAX = 512
PROGRAM_MAX = 1024
DEPTH_MAX = 32
REPEAT_MAX = 1000  # Go's bound
# Expressions kept compiled: an operator's watch repeats the same few.
CACHE_MAX = 64


class PatternError(ValueError):
    """The expression cannot be used; the text says why."""


class _Set(NamedTuple):
    """One character of these ranges, or not of them."""

    ranges: tuple[tuple[str, str], ...]
    negated: bool = False

    def has(self, char: str) -> bool:
        return any(low <= char <= high for low, high in self.ranges) != self.negated


class _Split(NamedTuple):
    """Go on at either place, relative to this."""

    first: int
    second: int


class _At(NamedTuple):
    """Go on only at the start, the end, or a boundary of a word."""

    where: str  # "start", "end", "word", "inside"


_Step = _Set | _Split | _At
_Program = tuple[_Step, ...]

_DIGIT = (("0", "9"),)
_WORD = (("0", "9"), ("A", "Z"), ("_", "_"), ("a", "z"))
_SPACE = (("\t", "\n"), ("\f", "\r"), (" ", " "))
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
_ANY = _Set((("\n", "\n"),), negated=True)
_ANCHORS = {"A": _At("start"), "z": _At("end"), "b": _At("word"), "B": _At("inside")}


class Pattern:
    """A compiled expression."""

    __slots__ = ("_end", "_fold", "_program")

    def __init__(self, program: _Program, fold: bool) -> None:
        self._program = program
        self._end = len(program)
        self._fold = fold

    def search(self, text: str) -> bool:
        """Whether it matches somewhere in the text."""
        return self._run(text, anywhere=True)

    def fullmatch(self, text: str) -> bool:
        """Whether it matches the whole text."""
        return self._run(text, anywhere=False)

    def _run(self, text: str, *, anywhere: bool) -> bool:
        text = text.casefold() if self._fold else text
        states: set[int] = set()
        for at in range(len(text) + 1):
            if anywhere or at == 0:
                states.add(0)
            states = self._reach(states, text, at)
            if self._end in states and (anywhere or at == len(text)):
                return True
            if at < len(text):
                states = self._step(states, text[at])
        return False

    def _step(self, states: set[int], char: str) -> set[int]:
        after: set[int] = set()
        for place in states:
            if place < self._end:
                step = self._program[place]
                if isinstance(step, _Set) and step.has(char):
                    after.add(place + 1)
        return after

    def _reach(self, states: set[int], text: str, at: int) -> set[int]:
        """All places that can be got to without taking a character."""
        found: set[int] = set()
        stack = list(states)
        while stack:
            place = stack.pop()
            if place in found:
                continue
            found.add(place)
            if place == self._end:
                continue
            match self._program[place]:
                case _Split(first, second):
                    stack += (place + first, place + second)
                case _At(where) if _holds(where, text, at):
                    stack.append(place + 1)
                case _:
                    pass
        return found


def _holds(where: str, text: str, at: int) -> bool:
    if where == "start":
        return at == 0
    if where == "end":
        return at == len(text)
    word = _Set(_WORD)
    boundary = (at > 0 and word.has(text[at - 1])) != (at < len(text) and word.has(text[at]))
    return boundary == (where == "word")


@functools.lru_cache(CACHE_MAX)
def compile_pattern(source: str) -> Pattern:
    """Read an expression. Raises PatternError."""
    if len(source) > SOURCE_MAX:
        raise PatternError(f"expression is longer than {SOURCE_MAX} characters")
    fold = source.startswith("(?i)")
    parser = _Parser(source[4:].casefold() if fold and "\\" not in source else source[4 * fold :], fold)
    program = parser.alternatives(0)
    if parser.rest():
        raise PatternError(f'unexpected ")" in expression "{source}"')
    return Pattern(program, fold)


class _Parser:
    """Recursive descent; each method reads on from `_at` and returns a program."""

    def __init__(self, source: str, fold: bool) -> None:
        self._source = source
        self._at = 0
        self._fold = fold

    def rest(self) -> str:
        return self._source[self._at :]

    def alternatives(self, depth: int) -> _Program:
        if depth > DEPTH_MAX:
            raise PatternError("expression nests too deep")
        program = self._sequence(depth)
        while self._take("|"):
            other = self._sequence(depth)
            # split(here, other); here; jump over other
            jump = _Split(len(other) + 1, len(other) + 1)
            program = _bounded((_Split(1, len(program) + 2), *program, jump, *other))
        return program

    def _sequence(self, depth: int) -> _Program:
        program: _Program = ()
        while (rest := self.rest()) and rest[0] not in "|)":
            program = _bounded(program + self._repeated(depth))
        return program

    def _repeated(self, depth: int) -> _Program:
        program = self._atom(depth)
        while (rest := self.rest()) and rest[0] in "*+?{":
            bounds = self._bounds()
            if bounds is None:
                break
            program = _repeat(program, *bounds)
            self._take("?")
        return program

    def _bounds(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return bounds
        inside, closed, _ = self.rest()[1:].partition("}")
        low, comma, high = inside.partition(",")
        if not closed or not low.isdecimal() or (high and not high.isdecimal()):
            return None  # a brace that is itself, as in Go
        self._at += len(inside) + 2
        least, most = int(low), (int(high) if high else None) if comma else int(low)
        if max(least, most or 0) > REPEAT_MAX or (most is not None and most < least):
            raise PatternError(f"cannot repeat {{{inside}}}")
        return least, most

    def _atom(self, depth: int) -> _Program:
        match self._next():
            case "(":
                return self._group(depth)
            case "[":
                return (self._class(),)
            case ".":
                return (_ANY,)
            case "^":
                return (_At("start"),)
            case "$":
                return (_At("end"),)
            case "\\":
                return (self._escape(),)
            case "*" | "+" | "?":
                raise PatternError("nothing to repeat")
            case char:
                return (self._literal(char),)

    def _group(self, depth: int) -> _Program:
        if self._take("?"):
            if self._take("P<") or self._take("<"):
                _, found, _ = self.rest().partition(">")
                if not found:
                    raise PatternError("group has no name")
                self._at = self._source.index(">", self._at) + 1
            elif not self._take(":"):
                raise PatternError(f'"(?{self.rest()[:1]}" is not understood')
        program = self.alternatives(depth + 1)
        if not self._take(")"):
            raise PatternError('missing ")"')
        return program

    def _escape(self) -> _Step:
        char = self._next()
        if char in _ANCHORS:
            return _ANCHORS[char]
        if char.lower() in _CLASSES:
            return _Set(_CLASSES[char.lower()], negated=char.isupper())
        return self._literal(self._escaped(char))

    @staticmethod
    def _escaped(char: str) -> str:
        if char in _ESCAPES:
            return _ESCAPES[char]
        if char.isalnum():
            raise PatternError(f'"\\{char}" is not understood')
        return char

    def _literal(self, char: str) -> _Set:
        char = char.casefold() if self._fold else char
        return _Set(((char, char),))

    def _class(self) -> _Set:
        negated = self._take("^")
        ranges: list[tuple[str, str]] = []
        first = True
        while first or not self._take("]"):
            first = False
            low = self._next()
            if low == "\\":
                low = self._next()
                if low in _CLASSES:
                    ranges += _CLASSES[low]
                    continue
                low = self._escaped(low)
            elif low == "[" and self.rest().startswith(":"):
                raise PatternError("named classes are not understood")
            high = low
            if self.rest().startswith("-") and not self.rest().startswith("-]"):
                self._next()
                high = self._next()
                high = self._escaped(self._next()) if high == "\\" else high
            if high < low:
                raise PatternError(f'"{low}-{high}" is no range')
            ranges.append((low, high))
            if self._fold:
                ranges.append((low.casefold(), high.casefold()))
        return _Set(tuple(ranges), negated)

    def _take(self, what: str) -> bool:
        if self._source.startswith(what, self._at):
            self._at += len(what)
            return True
        return False

    def _next(self) -> str:
        if self._at >= len(self._source):
            raise PatternError("expression ends too early")
        self._at += 1
        return self._source[self._at - 1]


def _repeat(program: _Program, least: int, most: int | None) -> _Program:
    size = len(program)
    if size * max(least, most or 1) > PROGRAM_MAX:
        raise PatternError("expression is too large")
    out = program * least
    if most is None:
        out += (_Split(1, size + 2), *program, _Split(-(size + 1), -(size + 1)))
    else:
        out += (_Split(1, size + 1), *program) * (most - least)
    return _bounded(out)


def _bounded(program: _Program) -> _Program:
    if len(program) > PROGRAM_MAX:
        raise PatternError("expression is too large")
    return program
