"""Packed answers, looked up by the bytes of the question. Pure and bounded.

The common query is one dictionary look-up: everything of a request after its id, as it came (flags, counts, question,
EDNS), leads to everything of the answer after its id. Keys are kept with the name in lower case; a question in mixed
case (0x20) finds the same answer through `folded`, and its own spelling is put in.

Two generations bound it without bookkeeping on a hit: what is not used while the younger one fills up is forgotten
with the older one. Answers are thrown away by name when the zone changes; *brief* ones, of other servers, at the next
`tick`, because their times-to-live count down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dns.wire import HEADER_LEN

# Answers of one generation: some forms of each name there is (A, AAAA, with and without EDNS), within bounds. About
# 400 bytes each, 1 KiB at most: 2 × 2 MiB for a small network whose clients do their worst.
GENERATION_MIN, GENERATION_MAX = 2_048, 262_144
FORMS_PER_NAME = 3
# Longer questions are rare and would let clients fill the memory.
KEY_MAX = 160
ANSWER_MAX = 600

_NAME_AT = HEADER_LEN - 2  # in a key


@dataclass(slots=True)
class _Generation:
    answers: dict[bytes, bytes] = field(default_factory=dict)
    keys: dict[bytes, list[bytes]] = field(default_factory=dict)  # by name in lower case

    def forget(self, name: bytes) -> None:
        for key in self.keys.pop(name, ()):
            self.answers.pop(key, None)


class Hot:
    """The packed answers of one view. `answers` is the dictionary that the serving loop looks into."""

    __slots__ = ("_brief", "_names", "_old", "_young", "answers", "generation_max")

    def __init__(self, names: Callable[[], int] = lambda: 0) -> None:
        """`names` tells how many names there are."""
        self._names = names
        self._brief: list[bytes] = []
        self.generation_max = GENERATION_MIN
        self._young, self._old = _Generation(), _Generation()
        self.answers = self._young.answers

    def __len__(self) -> int:
        return len(self._young.answers) + len(self._old.answers)

    def put(self, key: bytes, name: bytes, answer: bytes) -> None:
        """Keep an answer (without its id) to a question with this name, which is in lower case."""
        if len(key) > KEY_MAX or len(answer) > ANSWER_MAX or name != name.lower():
            return
        if len(self._young.answers) >= self.generation_max:
            self.generation_max = max(self.generation_max, min(GENERATION_MAX, FORMS_PER_NAME * self._names()))
        if len(self._young.answers) >= self.generation_max:
            self._old, self._young = self._young, _Generation()
            self.answers = self._young.answers
        if key not in self._young.answers:
            self._young.keys.setdefault(name, []).append(key)
        self._young.answers[key] = answer

    def put_brief(self, key: bytes, name: bytes, answer: bytes) -> None:
        """Keep an answer until the next `tick`."""
        if len(self._brief) < self.generation_max:
            self.put(key, name, answer)
            self._brief.append(name)

    def tick(self) -> None:
        """A second has gone by."""
        for name in self._brief:
            self.forget(name)
        self._brief.clear()

    def find(self, key: bytes) -> bytes | None:
        """The answer to a question that is not in `answers` as it is: older, or in mixed case."""
        end = key.find(b"\0", _NAME_AT) + 1
        name = key[_NAME_AT:end]
        folded = name.lower()
        if folded != name:
            key = key[:_NAME_AT] + folded + key[end:]
        found = self._young.answers.get(key)
        if found is None:
            found = self._old.answers.get(key)
            if found is None:
                return None
            self.put(key, folded, found)
        return found if folded == name else found[:_NAME_AT] + name + found[_NAME_AT + len(name) :]

    def forget(self, name: bytes) -> None:
        """Throw away the answers for a name (lower case, wire form with its root)."""
        self._young.forget(name)
        self._old.forget(name)

    def clear(self) -> None:
        """Throw away everything."""
        self._young, self._old = _Generation(), _Generation()
        self.answers = self._young.answers
