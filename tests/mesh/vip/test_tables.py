"""What is read and what is not, and what happens when a transaction fails: with a kernel in memory."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import cast

import pytest

from mesh.vip import rules
from mesh.vip.namespace import Namespace
from mesh.vip.nft import VipError
from mesh.vip.rules import Chain, Edit, Held, Kind, Map, Table
from mesh.vip.tables import Tables

NUMBERS = Map("numbers", "type ipv4_addr : mark", (Kind.ADDRESS,), (Kind.MARK,))
PATH = "/run/netns/mesh-web"


def table(*marks: int) -> Table:
    return Table((NUMBERS,), (Chain("c", ("accept",)),), {"numbers": {(n,): (m,) for n, m in enumerate(marks)}})


@dataclass
class World:
    """A namespace and nft in one. Its table becomes what was wanted, unless it is told to fail."""

    cookie: tuple[int, int] = (0, 1)
    number: int = 5
    held: Held | None = None
    wanted: Table = field(default_factory=table)
    failures: int = 0
    between: int = 0  # transactions of others that come between ours and the look after it
    reads: int = 0
    texts: list[str] = field(default_factory=list)
    name: str = "world"

    def generation(self) -> int:
        return self.number

    def table(self, maps: tuple[Map, ...]) -> Held | None:
        assert maps == (NUMBERS,)
        self.reads += 1
        return self.held

    def has_table(self) -> bool:
        return self.held is not None

    def run(self, text: str) -> None:
        self.texts.append(text)
        if self.failures:
            self.failures -= 1
            raise VipError("no")
        removed = text == rules.removal()
        self.held = None if removed else rules.advance(None, self.wanted, rules.own_edits(Held(), self.wanted))
        self.number += 1 + self.between

    def edit(self, edits: list[Edit], generation: int) -> None:
        assert edits
        if generation != self.number:
            raise OSError(errno.ERESTART, "others came between")
        try:
            self.run(rules.edited(edits))
        except VipError as error:
            raise OSError(errno.ENOENT, "no such element") from error

    def release(self) -> None:
        pass


def sync(tables: Tables, world: World, wanted: Table) -> tuple[dict[str, int], bool]:
    world.wanted = wanted

    def plan(_held: Held | None, _news: bool) -> tuple[Table, list[Edit]]:
        return wanted, []

    done = tables.sync(PATH, cast(Namespace, world), (NUMBERS,), plan)
    return dict(done.changes), done.news


def test_a_table_is_read_once_and_not_again_while_nobody_touches_it() -> None:
    world = World()
    tables = Tables(world)
    assert sync(tables, world, table(1, 2)) == ({"vip table": 1, "vip element": 2, "vip rule": 1}, True)
    assert sync(tables, world, table(1, 2)) == ({}, False)
    assert sync(tables, world, table(1, 3)) == ({"vip element": 1}, False)
    assert world.reads == 1


def test_a_transaction_of_others_elsewhere_is_no_news() -> None:
    world = World()
    tables = Tables(world)
    sync(tables, world, table(1))
    world.number += 1
    assert sync(tables, world, table(1)) == ({}, False)
    assert world.reads == 2
    sync(tables, world, table(1))
    assert world.reads == 2


def test_a_table_that_others_removed_is_news_and_made_again() -> None:
    world = World()
    tables = Tables(world)
    sync(tables, world, table(1))
    world.number, world.held = world.number + 1, None
    changes, news = sync(tables, world, table(1))
    assert changes["vip table"] == 1
    assert news


def test_another_namespace_under_the_same_path_is_read_though_its_number_is_the_same() -> None:
    world = World()
    tables = Tables(world)
    sync(tables, world, table(1))
    world.cookie, world.held = (0, 2), None
    assert sync(tables, world, table(1))[1]
    assert world.held is not None


def test_a_fresh_process_adopts_a_table_as_it_is() -> None:
    world = World()
    sync(Tables(world), world, table(1))
    assert sync(Tables(world), world, table(1)) == ({}, True)
    assert len(world.texts) == 1


def test_when_others_come_between_the_table_is_read_the_next_time() -> None:
    world = World(between=1)
    tables = Tables(world)
    sync(tables, world, table(1))
    sync(tables, world, table(1))
    assert world.reads == 2


def test_a_transaction_that_fails_is_tried_on_what_is_really_there_and_then_replaces_the_table() -> None:
    world = World()
    tables = Tables(world)
    sync(tables, world, table(1))
    for failures, replaced in ((1, False), (2, True)):
        world.failures, world.texts = failures, []
        sync(tables, world, table(failures + 5))
        assert len(world.texts) == failures + 1
        assert ("delete table" in world.texts[-1]) == replaced
        assert world.failures == 0
    world.failures = 3
    with pytest.raises(VipError):
        sync(tables, world, table(9))
    assert sync(tables, world, table(9))[1]  # it is not believed to be anything afterwards


def test_a_table_of_another_shape_is_replaced() -> None:
    world = World()
    tables = Tables(world)
    sync(tables, world, table(1))
    assert world.held is not None
    world.held.dormant = True
    world.number += 1
    assert sync(tables, world, table(1))[0]["vip table"] == 1


def test_removal_is_of_what_is_there() -> None:
    world = World()
    tables = Tables(world)
    sync(tables, world, table(1))
    assert tables.remove(PATH, cast(Namespace, world)) == {"vip table": 1}
    assert tables.remove(PATH, cast(Namespace, world)) == {}
