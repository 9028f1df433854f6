"""Reading all of the store at once, and seeing that it is ours."""

from __future__ import annotations

from control.etcd import etcd_pb2 as pb
from control.etcd import txns
from control.etcd.client import CALL_S, WRITE_S, Client
from control.etcd.mirror import KeyChange, Listing, Mirror
from control.etcd.wire import FORMAT, Keys, Meta, decode_head, decode_meta, encode
from control.store.backend import Image
from control.store.errors import BackendFailed, WrongCluster

# Pages of at most 8 MiB (`wire` bounds values).
ROWS_PER_PAGE, PARTS_PER_PAGE = 120, 15


async def claim(client: Client, keys: Keys, prefix: str, cluster_id: str) -> None:
    """Make the store of this cluster if there is none. Raises WrongCluster, BackendFailed, EtcdError."""
    response = await client.txn(txns.first(keys, encode(Meta(FORMAT, cluster_id))), WRITE_S)
    if response.succeeded:
        return
    found = response.responses[0].response_range.kvs
    if not found:
        raise BackendFailed(f"the keys of the store below {prefix} in etcd are not complete: restore a backup")
    meta = decode_meta(found[0].value)
    if meta.format != FORMAT:
        raise BackendFailed(
            f"the store in etcd has format {meta.format}, this version of meshd knows {FORMAT}: update it"
        )
    if meta.cluster_id != cluster_id:
        raise WrongCluster(
            f'the prefix {prefix} in etcd belongs to cluster "{meta.cluster_id}", not to "{cluster_id}": '
            "use another prefix"
        )


async def read_all(client: Client, keys: Keys, mirror: Mirror) -> Image:
    """Everything at one revision, into the mirror. Raises BackendFailed, EtcdError (Compacted: begin again)."""
    head = await read_head(client, keys, mirror)
    revision = head.header.revision
    listing = Listing(
        revision,
        head.kvs[0].value,
        head.kvs[0].mod_revision,
        await _pages(client, keys.rows, revision, ROWS_PER_PAGE),
        await _pages(client, keys.parts, revision, PARTS_PER_PAGE),
        await _pages(client, keys.runs, revision, ROWS_PER_PAGE),
    )
    rows = mirror.load(listing)
    return Image(mirror.version, rows)


async def read_head(client: Client, keys: Keys, mirror: Mirror) -> pb.RangeResponse:
    """The head, linearizably. Raises BackendFailed if it is older than what was read before: a restored etcd."""
    found = await client.range(pb.RangeRequest(key=keys.head), CALL_S)
    if not found.kvs or decode_head(found.kvs[0].value).version < mirror.version:
        raise BackendFailed(
            f"the store in etcd is gone, or older than what was read from it (commit {mirror.version}): "
            "if etcd was restored from a backup, start all managers anew"
        )
    return found


async def _pages(client: Client, prefix: bytes, revision: int, limit: int) -> list[KeyChange]:
    found: list[KeyChange] = []
    start, more = prefix, True
    while more:
        page = await client.range(txns.page(prefix, start, revision, limit), WRITE_S)
        found += (KeyChange(kv.key, kv.value, kv.create_revision) for kv in page.kvs)
        more = page.more and bool(page.kvs)
        start = found[-1].key + b"\0" if found else prefix
    return found
