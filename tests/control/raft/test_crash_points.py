"""Raft's core on the journal: power fails at each write, sync, rename and removal of log and snapshots, in turn.

Afterwards nothing that was acknowledged is missing, nothing that was not proposed is there, and it goes on.
"""

import itertools

import pytest

from control.raft.ready import Inconsistent
from control.store.errors import BackendFailed
from control.store.segments import Segments
from tests.control.raft.crashlab import Net, meta_of
from tests.control.store.simdisk import FATES, PowerFailure, SimDisk

NAMES = ("lost", "kept", "some")


async def life(net: Net, victim: str) -> None:
    """Some of all that a manager writes. Ends early when the victim's power fails."""
    sizes = (20, 300, 700, 20, 1500, 90, 2600, 40)
    for round_number, size in enumerate(sizes):
        if net.managers[victim].disk.dead:
            return
        leader = await net.elect()
        net.propose(leader, 3, size)
        await net.settle()
        if len(net.managers) > 1:
            match round_number:
                case 2:
                    net.cut = {max(net.managers)}  # it misses what is compacted meanwhile
                case 5:
                    net.cut = set()
                    await net.tick(3)
                    assert net.managers[victim].disk.dead or meta_of(net.managers[max(net.managers)]) is not None
                case 6:
                    if leader is not None and leader.alive:
                        leader.core.transfer_leadership()
                        leader.pump()
                        await net.tick(3)
        if round_number in (1, 3, 4, 6):
            for manager in net.managers.values():
                if manager.alive:
                    manager.save(keep=(2, 0, 1)[round_number % 3])
            await net.settle()
        await net.tick(2)


async def run(size: int, victim: str, fail_at: int | None) -> Net:
    net = Net(size)
    for member in net.first.members:
        await net.start(member.id, SimDisk(fail_at=fail_at if member.id == victim else None))
    await life(net, victim)
    return net


def check(net: Net, names: tuple[str, ...]) -> None:
    """All that was acknowledged, in order; and nothing that was never proposed, or twice."""
    have = [name for name in names if name in set(net.acknowledged)]
    assert have == net.acknowledged, (net.now, have[-3:], net.acknowledged[-3:])
    assert len(set(names)) == len(names)
    assert set(names) <= set(net.names)


async def go_on(net: Net) -> None:
    """It leads, it has everything, and it can be written to; all become equal."""
    net.cut = set()
    await net.elect()
    check(net, net.leader().machine.names)
    before = len(net.acknowledged)
    for _ in range(20):
        if len(net.acknowledged) >= before + 2:
            break
        net.propose(await net.elect(), 2, 50)
        await net.settle()
        await net.tick(2)
    assert len(net.acknowledged) >= before + 2
    await net.tick(6)
    for manager in net.managers.values():
        check(net, manager.machine.names)
        assert manager.machine.names == net.leader().machine.names
    await net.close()


async def points(size: int, victim: str) -> int:
    """How many operations the victim's disk has, in a run without failures."""
    net = await run(size, victim, None)
    disk = net.managers[victim].disk
    assert len(net.acknowledged) == len(net.names) == 24
    kinds = {what.split("-")[0] for what in disk.trace}
    assert {"write", "sync", "sync directory", "rename wal", "rename snapshot"} <= kinds
    assert net.installed == (size > 1)
    for manager in net.managers.values():
        check(net, manager.machine.names)
    await net.close()
    return disk.operations


async def test_a_manager_alone():
    count = await points(1, "n1.1")
    assert count > 80
    for fail_at in range(count):
        net = await run(1, "n1.1", fail_at)
        disk = net.managers["n1.1"].disk
        assert disk.dead
        await net.close()
        for fate, names in itertools.product(FATES, NAMES):
            again = net.after()
            await again.start("n1.1", disk.after(fate, names=names))
            await go_on(again)


@pytest.mark.parametrize("victim", ["n1.1", "n2.2", "n3.3"])
async def test_one_of_three(victim):
    """The others go on; it comes back to them, with what its disk kept."""
    count = await points(3, victim)
    assert count > 80
    for fail_at in range(count):
        net = await run(3, victim, fail_at)
        disk = net.managers[victim].disk
        assert disk.dead
        net.cut = set()
        await net.tick(3 if fail_at % 2 else 20)  # it is back before or after there is another leader
        await net.managers[victim].close()
        fate, names = FATES[fail_at % len(FATES)], NAMES[fail_at % len(NAMES)]
        await net.start(victim, disk.after(fate, names=names))
        await go_on(net)


@pytest.mark.parametrize("victim", ["n1.1", "n2.2", "n3.3"])
async def test_the_power_of_all_three_fails(victim):
    """At an operation of one of them, the others wherever they are then."""
    for fail_at in range(await points(3, victim)):
        net = await run(3, victim, fail_at)
        await net.close()
        disks = {name: manager.disk for name, manager in net.managers.items()}
        for turn in range(2):
            again = net.after()
            for at, (name, disk) in enumerate(disks.items()):
                fate, names = FATES[(fail_at + at * 3 + turn) % len(FATES)], NAMES[(fail_at + at + turn) % len(NAMES)]
                await again.start(name, disk.after(fate, names=names))
            await go_on(again)


@pytest.mark.parametrize("lie", ["sync", "early"])
async def test_a_test_of_the_tests(lie, monkeypatch):
    """Disks that do not sync, and a journal that answers before it has: it must be noticed."""
    append = Segments.append

    def before_the_sync(self, batch, tip):
        disk, written = self._disk, self._disk.operations
        try:
            append(self, batch, tip)
        except PowerFailure:
            if disk.operations == written + 1:  # the write was done, the sync was not
                disk.dead = False
                disk.fail_at = disk.operations
                return
            raise

    if lie == "early":
        monkeypatch.setattr(Segments, "append", before_the_sync)
    else:
        monkeypatch.setattr(SimDisk, "sync", lambda self, handle: self._operation("sync"))
    caught = 0
    for fail_at in range(10, 100):
        net = await run(1, "n1.1", fail_at)
        await net.close()
        disk = net.managers["n1.1"].disk
        again = net.after()
        try:
            await again.start("n1.1", disk.after("lost", names="kept"))
            await go_on(again)
        except (BackendFailed, Inconsistent, AssertionError):
            caught += 1
    assert caught > 3
