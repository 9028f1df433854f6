"""An nftables table as a value: what it should hold, what it was found to hold, and the text that leads from one to
the other. Pure.

The text is one transaction of nft(8): it happens whole or not at all. Only what differs is in it, so that no
established connection is touched and one changed backend costs one element whatever the number of services. Two kinds
of content are compared in two ways:

- elements of maps and sets by value;
- rules by a *tag*, the hash of their text, which each carries as its comment: how the kernel's rules read differs with
  every version of nft, their comments do not. A chain whose tags differ gets all its rules anew.

A table of another shape (made by another version of this program, or bent by somebody) is replaced in one transaction;
connections keep their translation, which lives in connection tracking and not in the table.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from ipaddress import IPv6Address

# Our one table, in a router and in a host. Nothing outside it is ever changed.
TABLE = "mesh"
# Of both versions of IP: one table, one transaction.
_INET = f"inet {TABLE}"

Atom = int | str
Key = tuple[Atom, ...]
Elements = Mapping[Key, Key]

# Elements in one command: nft keeps a command's elements in memory together, and one per element costs a lookup each.
_ELEMENTS_PER_COMMAND = 1000
_TAG_CHARACTERS = 12


class Kind(Enum):
    """What one field of a key or a value is."""

    ADDRESS = "address"  # a number as well: IPv4Address objects hash ten times slower, and there are many
    ADDRESS6 = "address6"  # likewise
    PROTOCOL = "protocol"  # IP protocol number
    PORT = "port"
    SLOT = "slot"  # a 32-bit number as numgen gives it, in the byte order of the machine
    MARK = "mark"  # likewise
    ZONE = "zone"  # of conntrack, likewise, 16 bits
    MAC = "mac"  # "02:6d:73:68:00:01"
    CHAIN = "chain"  # go to the chain of that name


LENGTH_BYTES = {
    Kind.ADDRESS: 4,
    Kind.ADDRESS6: 16,
    Kind.PROTOCOL: 1,
    Kind.PORT: 2,
    Kind.SLOT: 4,
    Kind.MARK: 4,
    Kind.ZONE: 2,
    Kind.MAC: 6,
    Kind.CHAIN: 0,
}


def padded(length_bytes: int) -> int:
    """Fields that stand together begin at multiples of a register's four bytes (nf_tables)."""
    return (length_bytes + 3) & ~3


def _length(kinds: tuple[Kind, ...]) -> int:
    if len(kinds) == 1:
        return LENGTH_BYTES[kinds[0]]
    return sum(padded(LENGTH_BYTES[kind]) for kind in kinds)


@dataclass(frozen=True, slots=True)
class Shape:
    """Lengths of keys and values in bytes. Sets and verdict maps have values of no length."""

    key_length: int
    value_length: int
    verdict: bool


@dataclass(frozen=True, slots=True)
class Map:
    """A map, or a set when it has no value fields. `declaration` is its type in nft's words."""

    name: str
    declaration: str
    key: tuple[Kind, ...]
    value: tuple[Kind, ...] = ()
    shape: Shape = field(init=False, compare=False, repr=False)  # what the kernel says of a map declared so

    def __post_init__(self) -> None:
        """Once and not for each comparison with the kernel."""
        object.__setattr__(self, "shape", Shape(_length(self.key), _length(self.value), self.value == (Kind.CHAIN,)))

    @property
    def noun(self) -> str:
        """What nft calls it."""
        return "map" if self.value else "set"


@dataclass(frozen=True, slots=True)
class Hook:
    """Where a base chain is called from; `name` as in nft."""

    type: str
    name: str
    priority: int


@dataclass(frozen=True, slots=True)
class HeldChain:
    """A chain as the kernel has it. The tag of a rule that is not ours reads ""; `accepts` is its policy."""

    hook: Hook | None
    accepts: bool
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain with its rules as text; the policy of base chains is always accept."""

    name: str
    rules: tuple[str, ...]
    hook: Hook | None = None
    held: HeldChain = field(init=False, compare=False, repr=False)  # as the kernel has it

    def __post_init__(self) -> None:
        """Once and not for each comparison with the kernel."""
        object.__setattr__(self, "held", HeldChain(self.hook, accepts=True, tags=tuple(map(tag, self.rules))))


@dataclass(frozen=True, slots=True)
class Table:
    """What a table should hold. Maps that are not in `elements` have theirs kept by somebody else (see `Edit`)."""

    maps: tuple[Map, ...] = ()
    chains: tuple[Chain, ...] = ()
    elements: Mapping[str, Elements] = field(default_factory=dict)
    flowtables: frozenset[str] = frozenset()  # by name; their devices are kept by somebody else (see `flowtable`)

    def __add__(self, other: Table) -> Table:
        """Both together; their names must differ."""
        return Table(
            self.maps + other.maps,
            self.chains + other.chains,
            {**self.elements, **other.elements},
            self.flowtables | other.flowtables,
        )


@dataclass(slots=True)
class Held:
    """A table as the kernel has it."""

    dormant: bool = False
    maps: dict[str, Shape] = field(default_factory=dict)
    chains: dict[str, HeldChain] = field(default_factory=dict)
    elements: dict[str, dict[Key, Key]] = field(default_factory=dict)
    flowtables: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Edit:
    """Changes of one map's elements. A key in both is given its new value."""

    map: Map
    delete: frozenset[Key]
    add: Elements


@dataclass(frozen=True, slots=True)
class Transaction:
    """Text for nft, and how much it changes: elements, rules, or the whole table.

    `edits` are all of it when it changes nothing but elements, else None.
    """

    text: str
    changes: Counter[str]
    edits: tuple[Edit, ...] | None = None


def removal() -> str:
    """Text that removes the table."""
    return f"delete table {_INET}\n"


def removal_of_former() -> str:
    """Text that removes the table of the version of this program that spoke IPv4 only."""
    return f"delete table ip {TABLE}\n"


@lru_cache(maxsize=16384)  # of the rules in use: every transaction compares all
def tag(rule: str) -> str:
    """The comment that a rule carries."""
    return f"m:{hashlib.sha256(rule.encode()).hexdigest()[:_TAG_CHARACTERS]}"


def edit(of: Map, held: Elements, wanted: Elements) -> Edit:
    """What leads from the elements that are there to the wanted ones."""
    if held == wanted:
        return Edit(of, frozenset(), {})
    gone = frozenset(key for key, value in held.items() if wanted.get(key) != value)
    return Edit(of, gone, {key: value for key, value in wanted.items() if held.get(key) != value})


def compatible(held: Held, wanted: Table) -> bool:
    """Whether the table can be brought piece by piece to what is wanted."""
    return (
        not held.dormant
        and all(held.maps.get(m.name, m.shape) == m.shape for m in wanted.maps)
        and all(_same_base(held.chains[c.name], c) for c in wanted.chains if c.name in held.chains)
    )


def _same_base(held: HeldChain, wanted: Chain) -> bool:
    return held is wanted.held or (held.accepts and held.hook == wanted.hook)


def own_edits(held: Held, wanted: Table) -> list[Edit]:
    """The edits of the maps whose elements are in the table's value."""
    return [
        edit(one, held.elements.get(one.name, {}), wanted.elements[one.name])
        for one in wanted.maps
        if one.name in wanted.elements
    ]


def transaction(held: Held | None, wanted: Table, edits: Iterable[Edit]) -> Transaction | None:
    """What leads from the table as it is (None: none, or one to be replaced) to the wanted one with `edits` made.

    The order is the kernel's: maps and chains before what refers to them, references gone before what they refer to.
    None when there is nothing to do.
    """
    changes: Counter[str] = Counter()
    lines: list[str] = []
    if held is None:
        lines += [f"add table {_INET}", f"delete table {_INET}", f"add table {_INET}"]
        changes["vip table"] += 1
        held = Held()
    edits = [one for one in edits if one.delete or one.add]
    obsolete_chains = sorted(held.chains.keys() - {c.name for c in wanted.chains})
    obsolete_maps = sorted(held.maps.keys() - {m.name for m in wanted.maps})
    changed = [c for c in wanted.chains if not _is_held(c, held.chains.get(c.name))]
    obsolete_flowtables = sorted(held.flowtables - wanted.flowtables)
    lines += [_declared_map(m) for m in wanted.maps if m.name not in held.maps]
    lines += [_declared_flowtable(name) for name in sorted(wanted.flowtables - held.flowtables)]
    lines += [_declared_chain(c) for c in wanted.chains if c.name not in held.chains]
    only_elements = not (lines or obsolete_chains or obsolete_maps or obsolete_flowtables or changed)
    for one in edits:
        lines += _element_commands("delete", one.map, dict.fromkeys(one.delete, ()))
    lines += [f"flush chain {_INET} {name}" for name in obsolete_chains]
    for chain in changed:
        lines += _rule_commands(chain, fresh=chain.name not in held.chains)
    for one in edits:
        lines += _element_commands("add", one.map, one.add)
    lines += [f"delete chain {_INET} {name}" for name in obsolete_chains]
    lines += [f"delete {_noun(held.maps[name])} {_INET} {name}" for name in obsolete_maps]
    lines += [f"delete flowtable {_INET} {name}" for name in obsolete_flowtables]
    changes["vip element"] = sum(len(one.delete | one.add.keys()) for one in edits)
    changes["vip rule"] = len(obsolete_chains) + len(obsolete_maps) + len(obsolete_flowtables) + len(changed)
    if not lines:
        return None
    return Transaction("\n".join(lines) + "\n", +changes, tuple(edits) if only_elements else None)


def edited(edits: Iterable[Edit]) -> str:
    """Text that makes edits and nothing else."""
    lines: list[str] = []
    for one in edits:
        lines += _element_commands("delete", one.map, dict.fromkeys(one.delete, ()))
        lines += _element_commands("add", one.map, one.add)
    return "\n".join(lines) + "\n"


def emptied(what: Map) -> str:
    """Text that deletes all elements of a map."""
    return f"flush {what.noun} {_INET} {what.name}\n"


def advance(held: Held | None, wanted: Table, edits: Iterable[Edit]) -> Held:
    """The table after the transaction. Takes the elements out of `held`, which must not be used afterwards."""
    elements = {m.name: held.elements.get(m.name, {}) if held is not None else {} for m in wanted.maps}
    for one in edits:
        content = elements[one.map.name]
        for key in one.delete:
            content.pop(key, None)
        content.update(one.add)
    return Held(
        maps={m.name: m.shape for m in wanted.maps},
        chains={c.name: c.held for c in wanted.chains},
        elements=elements,
        flowtables=wanted.flowtables,
    )


# --- text -------------------------------------------------------------------------------------------------------------


def _is_held(wanted: Chain, held: HeldChain | None) -> bool:
    return held is wanted.held or wanted.held.tags == (held.tags if held is not None else ())


def _noun(shape: Shape) -> str:
    return "map" if shape.value_length or shape.verdict else "set"


def _declared_map(what: Map) -> str:
    return f"add {what.noun} {_INET} {what.name} {{ {what.declaration}; }}"


def _declared_flowtable(name: str) -> str:
    return f"add flowtable {_INET} {name} {{ hook ingress priority 0; }}"


def _declared_chain(what: Chain) -> str:
    if (hook := what.hook) is None:
        return f"add chain {_INET} {what.name}"
    base = f"type {hook.type} hook {hook.name} priority {hook.priority}; policy accept;"
    return f"add chain {_INET} {what.name} {{ {base} }}"


def _rule_commands(chain: Chain, fresh: bool) -> Iterator[str]:
    if not fresh:
        yield f"flush chain {_INET} {chain.name}"
    for rule in chain.rules:
        yield f'add rule {_INET} {chain.name} {rule} comment "{tag(rule)}"'


def _element_commands(verb: str, of: Map, elements: Elements) -> Iterator[str]:
    texts = [_element(of, key, value) for key, value in elements.items()]
    for start in range(0, len(texts), _ELEMENTS_PER_COMMAND):
        yield f"{verb} element {_INET} {of.name} {{ {', '.join(texts[start : start + _ELEMENTS_PER_COMMAND])} }}"


def _element(of: Map, key: Key, value: Key) -> str:
    text = _fields(of.key, key)
    if not value:
        return text
    return f"{text} : goto {value[0]}" if of.value == (Kind.CHAIN,) else f"{text} : {_fields(of.value, value)}"


def _fields(kinds: tuple[Kind, ...], values: Key) -> str:
    return " . ".join(
        _WRITTEN[kind](value) if kind in _WRITTEN and isinstance(value, int) else str(value)
        for kind, value in zip(kinds, values, strict=bool(values))
    )


def dotted(address: int) -> str:
    """An IPv4 address in its usual form."""
    return f"{address >> 24}.{address >> 16 & 255}.{address >> 8 & 255}.{address & 255}"


def _colons(address: int) -> str:
    return str(IPv6Address(address))


_WRITTEN = {Kind.ADDRESS: dotted, Kind.ADDRESS6: _colons}
