"""The keys of gossip: a ring of three, made and changed by the managers every twelve hours. Pure.

    (the one that is sent with, the next one, the one before)

Every node accepts all three, so it has known a key for a whole period before anybody sends with it, and one that
missed a change still understands the others, and is understood, until it has heard of it from a manager. After SwarmKit
(manager/keymanager), where the order is another.
"""

from __future__ import annotations

import base64
from collections.abc import Callable

import msgspec

from control.decision import Decision
from control.lifecycle import Writer
from control.model import Cluster
from control.store.tables import Snapshot
from control.store.txn import Put

KEY_BYTES = 32  # AES-256
PERIOD_S = 12 * 3600.0


def new_key(random_bytes: bytes) -> str:
    """A key as it is stored."""
    assert len(random_bytes) == KEY_BYTES
    return base64.b64encode(random_bytes).decode()


def new_ring(random_bytes: Callable[[int], bytes]) -> tuple[str, ...]:
    """Of a new cluster."""
    return tuple(new_key(random_bytes(KEY_BYTES)) for _ in range(3))


def rotated(keys: tuple[str, ...], key: str) -> tuple[str, ...]:
    """The ring after a change; `key` becomes the next one. A ring that is not full is filled first."""
    match keys:
        case (current,):
            return (current, key)
        case (current, following, *_):
            return (following, key, current)
        case _:
            return (key,)


def decide(snapshot: Snapshot, now_ms: int, random_bytes: Callable[[int], bytes]) -> Decision:
    """Change the ring if it is time. A cluster that was not there when it was time changes it once, not often."""
    cluster = next(iter(snapshot.all(Cluster)), None)
    if cluster is None or not cluster.gossip_keys:
        return Decision()
    due_ms = cluster.gossip_keys_ms + int(PERIOD_S * 1000)
    if len(cluster.gossip_keys) > 1 and cluster.gossip_keys_ms <= now_ms < due_ms:
        return Decision(wake_at_ms=due_ms)
    keys = rotated(cluster.gossip_keys, new_key(random_bytes(KEY_BYTES)))
    changed = msgspec.structs.replace(cluster, gossip_keys=keys, gossip_keys_ms=now_ms)
    return Decision(((Writer.ORCHESTRATOR, Put(changed)),), now_ms + int(PERIOD_S * 1000))
