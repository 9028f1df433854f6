"""The WireGuard keys of this node: a file that never leaves it, and when one key follows another.

The life of a key, decided by `advanced` (pure): *made* (told to others from then on), *retired* (told no more, its
device still receives), gone. At most two at a time, one per slot. The file is `<state_dir>/wireguard.json`, mode 0600,
written whole; one that cannot be read is an error and not a reason to make new keys, which others do not know.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from overlay import names
from overlay.plan import PublicKey

# A key that was copied is of use for so long. Sessions have keys of their own, which change every two minutes.
LIFE_S = 30 * 86400.0
# A new key is heard of by the other nodes within seconds, if they hear anything. It waits so long before it can be the
# only one, and no longer for nodes that do not answer than OVERLAP_MAX_S.
OVERLAP_MIN_S = 60.0
OVERLAP_MAX_S = 3600.0
# A retired key receives for so long: peers look at least every 30 s (mesh.agent.reconcile) whether the newer one works.
LINGER_S = 120.0
FILE = "wireguard.json"


@dataclass(frozen=True, slots=True)
class OwnKey:
    """A key of this node. Times are seconds since the epoch; `retired_s` 0: in use."""

    slot: int
    private: str  # base64
    public: str
    made_s: float
    retired_s: float = 0.0


def generate() -> tuple[str, str]:
    """A new (private, public) key, base64."""
    key = X25519PrivateKey.generate()
    return _text(key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())), _public(key)


def public_of(private: str) -> str:
    """The public key of a private one, base64. Raises ValueError."""
    return _public(X25519PrivateKey.from_private_bytes(base64.b64decode(private)))


def _public(key: X25519PrivateKey) -> str:
    return _text(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


def told(keys: Sequence[OwnKey]) -> tuple[PublicKey, ...]:
    """What the other nodes are told, oldest first."""
    return tuple(PublicKey(key.slot, key.public) for key in keys if not key.retired_s)


def advanced(
    keys: Sequence[OwnKey],
    *,
    replaced: bool,
    now_s: float,
    life_s: float = LIFE_S,
    make: Callable[[], tuple[str, str]] = generate,
) -> tuple[OwnKey, ...]:
    """The keys after one step of their life, oldest first. `replaced`: who used the old one has met the new one."""
    if not keys:
        return (_made(names.KEY_SLOTS[0], now_s, make),)
    oldest, newest = keys[0], keys[-1]
    if len(keys) == 1:
        if now_s - oldest.made_s < life_s:
            return tuple(keys)
        other = next(slot for slot in names.KEY_SLOTS if slot != oldest.slot)
        return (oldest, _made(other, now_s, make))
    if oldest.retired_s:
        return (newest,) if now_s - oldest.retired_s >= LINGER_S else tuple(keys)
    age_s = now_s - newest.made_s
    if (replaced and age_s >= OVERLAP_MIN_S) or age_s >= OVERLAP_MAX_S:
        return (replace(oldest, retired_s=now_s), newest)
    return tuple(keys)


class KeyFile:
    """The keys on disk. For one writer at a time, which is the daemon. Raises OSError."""

    def __init__(self, state_dir: Path, now_s: Callable[[], float], life_s: float = LIFE_S) -> None:
        """`now_s` is the time of day; `life_s` is how long a key is in use."""
        self._path, self._now_s, self._life_s = state_dir / FILE, now_s, life_s

    def load(self) -> tuple[OwnKey, ...]:
        """The keys, oldest first; the first one is made when there is none."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return self._save(advanced((), replaced=False, now_s=self._now_s()))
        try:
            return tuple(_own_key(entry) for entry in json.loads(data)["keys"])
        except (ValueError, TypeError, KeyError) as error:
            raise OSError(f"{self._path} holds no keys: remove it, and this node makes new ones") from error

    def advance(self, *, replaced: bool) -> tuple[OwnKey, ...]:
        """The keys after one step of their life."""
        keys = self.load()
        after = advanced(keys, replaced=replaced, now_s=self._now_s(), life_s=self._life_s)
        return after if after == keys else self._save(after)

    def _save(self, keys: tuple[OwnKey, ...]) -> tuple[OwnKey, ...]:
        fields = ("slot", "private", "made_s", "retired_s")
        text = json.dumps({"keys": [{name: getattr(key, name) for name in fields} for key in keys]})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)
        return keys


def _own_key(entry: dict[str, object]) -> OwnKey:
    slot, private = entry["slot"], entry["private"]
    if slot not in names.KEY_SLOTS or not isinstance(slot, int) or not isinstance(private, str):
        raise ValueError("a key has a slot and 32 bytes")
    times = {name: float(str(entry.get(name, 0.0))) for name in ("made_s", "retired_s")}
    return OwnKey(slot, private, public_of(private), **times)


def _made(slot: int, now_s: float, make: Callable[[], tuple[str, str]]) -> OwnKey:
    private, public = make()
    return OwnKey(slot, private, public, now_s)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
