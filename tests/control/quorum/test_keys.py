"""What a manager has on its disk is encrypted, also after another key, and what was there before there were any."""

import os

from control.store.aesgcm import AesGcmSealer, Keys
from control.store.record import RowChange
from tests.control.conformance.seen import names, put

SECRET = b"a secret that nobody may find"


class Ring:
    """A ring whose current key can be replaced."""

    def __init__(self, *numbers: int, plain: bool = False) -> None:
        self.numbers, self.plain = list(numbers), plain
        self.needed: list[set[str]] = []

    def current(self):
        return self._keys().current()

    def find(self, key_id):
        return self._keys().find(key_id)

    def _keys(self) -> Keys:
        sealers = [AesGcmSealer(f"key {n}", bytes([n]) * 32, os.urandom) for n in self.numbers]
        return Keys(sealers, plain=self.plain)


def secret(seen, name: str):
    return seen.commit(RowChange("network", name, 0, SECRET))


def in_the_clear(lab, node: str) -> list[str]:
    return [path.name for path in lab.path(node).rglob("*") if path.is_file() and SECRET in path.read_bytes()]


async def saved(lab, node: str) -> None:
    """A snapshot is on the disk."""
    backend = lab.backends[node]
    backend._engine.snapshots.save()
    await lab.until(lambda: not backend._engine.snapshots._saving)


async def test_a_store_from_before_is_encrypted_from_the_next_start_on(lab):
    a = await lab.first()
    await secret(a, "old")
    await lab.stop()
    assert in_the_clear(lab, "a"), "else this shows nothing"
    ring = Ring(1, plain=True)
    a = await lab.start("a", ring=ring, keys_needed=ring.needed.append, keep_entries=0)
    await a.leading()
    assert ring.needed == [{""}]
    await secret(a, "new")
    assert names(a) == ["new", "old"]
    for number in range(2):  # files go when two snapshots do not need them
        await a.commit(put(f"n{number}"))
        await saved(lab, "a")
    await lab.until(lambda: in_the_clear(lab, "a") == [])
    await lab.stop()
    a = await lab.start("a", ring=ring, keys_needed=ring.needed.append)
    assert ring.needed[1] == {"key 1"}
    assert names(a) == ["n0", "n1", "new", "old"]


async def test_another_key_counts_at_once_and_the_old_one_for_as_long_as_it_is_needed(lab):
    ring = Ring(1, plain=True)
    a = await lab.first(ring=ring, keep_entries=0)
    await secret(a, "a")
    ring.numbers.insert(0, 2)
    await lab.backends["a"].renew_key()
    assert lab.backends["a"]._journal.key_id == "key 2"
    await secret(a, "b")
    await lab.stop()
    a = await lab.start("a", ring=ring, keys_needed=ring.needed.append, keep_entries=0)
    await a.leading()
    assert "key 1" in ring.needed[0]
    for number in range(2):
        await a.commit(put(f"n{number}"))
        await saved(lab, "a")
    await lab.until(lambda: lab.backends["a"]._journal.keys_in_use() == {"key 2"})
    await lab.stop()
    ring.numbers.remove(1)
    a = await lab.start("a", ring=ring, keys_needed=ring.needed.append)
    assert ring.needed[1] == {"key 2"}
    assert names(a) == ["a", "b", "n0", "n1"]


async def test_managers_have_keys_of_their_own(lab):
    a = await lab.first(ring=Ring(1, plain=True))
    await secret(a, "a")
    b = await lab.join("a", "b", ring=Ring(2, plain=True))
    await b.at(a.version)
    await secret(a, "b")
    await b.at(a.version)
    assert names(b) == ["a", "b"]
    assert in_the_clear(lab, "b") == []
