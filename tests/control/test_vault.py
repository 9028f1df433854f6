"""The keys of a manager on its disk: in the clear or locked, never half, never readable by others."""

import pytest

from control.lock import make_unlock_key
from control.vault import DATA_KEY_LIFE_S, DATA_KEYS_MAX, Vault, VaultError

KEY, OTHER = make_unlock_key(b"\1" * 32), make_unlock_key(b"\2" * 32)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vault.json"


def opened(path, clock=Clock()):  # noqa: B008 - it has no state but in one test
    return Vault(path, clock)


def prepared(path):
    vault = opened(path)
    vault.prepare(plain=False)
    return vault


def test_nothing_is_there_at_first(path):
    vault = opened(path)
    assert (vault.locked, vault.version, vault.node_key) == (False, 0, b"")
    assert not path.exists()
    assert not vault.due


def test_data_keys_outlive_a_start(path):
    sealed = prepared(path).current().seal(b"row", b"place")
    again = opened(path)
    assert again.current().unseal(sealed, b"place") == b"row"
    assert again.find("") is None, "nothing in the clear is believed"
    assert path.stat().st_mode & 0o777 == 0o600


def test_files_from_before_can_be_read_for_as_long_as_they_are_there(path):
    vault = opened(path)
    vault.prepare(plain=True)
    assert opened(path).find("") is not None
    vault.keep_only({vault.current().key_id})
    assert vault.find("") is None
    assert opened(path).find("") is None


def test_a_locked_one_opens_with_its_key_only(path):
    vault = prepared(path)
    before = vault.current()
    assert vault.relock(1, KEY, b"NODE KEY"), "the data key has lain there in the clear"
    assert vault.find(before.key_id) is not None
    assert not vault.locked, "this process goes on"
    assert b"NODE KEY" not in path.read_bytes()
    assert vault.current().key_id.encode() not in path.read_bytes()

    again = opened(path)
    assert again.locked
    assert again.version == 1
    assert again.find(before.key_id) is None
    for text, said in ((OTHER, "it is locked with number 1"), ("nonsense", "no unlock key")):
        with pytest.raises(VaultError, match=said):
            again.unlock(text)
    assert again.locked
    again.unlock(KEY)
    assert again.node_key == b"NODE KEY"
    assert again.current().key_id == vault.current().key_id != before.key_id


def test_another_unlock_key_is_another_data_key(path):
    vault = prepared(path)
    vault.relock(1, KEY, b"NODE KEY")
    first = vault.current()
    assert vault.relock(2, OTHER, b"NODE KEY")
    again = opened(path)
    with pytest.raises(VaultError, match="number 2"):
        again.unlock(KEY)
    again.unlock(OTHER)
    assert again.current().key_id != first.key_id
    assert again.find(first.key_id) is not None, "older files need it"
    again.keep_only({again.current().key_id})
    assert again.find(first.key_id) is None
    assert opened(path).version == 2


def test_without_a_lock_the_node_key_goes_back_to_its_place(path):
    vault = prepared(path)
    vault.relock(1, KEY, b"NODE KEY")
    current = vault.current()
    assert not vault.relock(0, "", b"")
    again = opened(path)
    assert not again.locked
    assert again.node_key == b""
    assert again.current().key_id == current.key_id


def test_data_keys_do_not_grow_without_bound(path):
    vault = prepared(path)
    for version in range(1, 3 * DATA_KEYS_MAX):
        vault.relock(version, KEY, b"NODE KEY")
    again = opened(path)
    again.unlock(KEY)
    assert len(again._contents.data_keys) == DATA_KEYS_MAX


def test_a_data_key_has_its_time(path):
    clock = Clock()
    vault = opened(path, clock)
    vault.prepare(plain=False)
    first = vault.current().key_id
    clock.now_s += DATA_KEY_LIFE_S - 1
    assert not vault.due
    clock.now_s += 2
    assert vault.due
    vault.renew()
    assert not vault.due
    assert vault.current().key_id != first
    assert vault.find(first) is not None


def test_a_file_that_others_could_read_is_refused(path):
    prepared(path)
    path.chmod(0o640)
    with pytest.raises(VaultError, match=r"can be used by others \(mode 0640\)"):
        opened(path)


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"format":2}', b'{"format":1,"version":1,"contents":{}}', b'{"format":1}']
)
def test_a_damaged_file_is_refused(path, data):
    path.touch(0o600)
    path.write_bytes(data)
    with pytest.raises(VaultError, match=r"cannot read|damaged"):
        opened(path)


def test_nothing_stays_of_a_manager_that_was(path):
    vault = prepared(path)
    vault.relock(1, KEY, b"NODE KEY")
    vault.remove()
    assert not path.exists()
    assert (vault.locked, vault.version, vault.node_key) == (False, 0, b"")
