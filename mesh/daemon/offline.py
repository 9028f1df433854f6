"""`meshd restore FILE` and `meshd recover`: what is done to a manager's state while its daemon does not run.

    restore   a new cluster out of a backup, with this machine as its only manager
    recover   a cluster of one out of this manager's own state, when a majority of the managers is lost for good

Either way the nodes keep their identities, and their tasks: they find the manager again if its address is one they
know. Other managers become managers of this cluster when they come back. Everything here blocks.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from getpass import getpass
from pathlib import Path

import msgspec

from control.ca.disk import CredentialsError
from control.ca.external import Unsigned
from control.ca.root import SERIAL_BYTES, CaError
from control.home import DiskHome, HomeError, home_of
from control.ids import IdSource
from control.lock import UNLOCK_KEY_MAX, LockError, backup_sealer, backup_version
from control.model import Cluster, Node
from control.quorum.seat import recover
from control.server.certificates import certify
from control.server.refusal import Refusal
from control.server.signing import Signatures
from control.store.aesgcm import Keys
from control.store.backup import Backup, key_of_backup, read_backup, restore
from control.store.errors import Damaged, StoreError
from control.store.rows import decode, row_of
from control.store.state import State
from control.store.tables import Snapshot
from control.token import secret_digest
from control.vault import VaultError
from mesh import machine
from mesh.config import Config
from mesh.daemon import identity as identities
from mesh.daemon.identity import Identity, IdentityError
from mesh.daemon.locker import Locker, LockerError, open_vault
from mesh.daemon.papers import Papers

COMMANDS = ("restore", "recover")


_REFUSALS = (
    CaError,
    CredentialsError,
    HomeError,
    IdentityError,
    LockError,
    LockerError,
    Refusal,
    StoreError,
    VaultError,
    machine.AddressError,
)


class OfflineError(Exception):
    """It cannot be done. One sentence for the user."""


def _parser(command: str) -> argparse.ArgumentParser:
    epilog = "The daemon's own flags, such as --state-dir and --config, are understood as well."
    if command == "recover":
        return argparse.ArgumentParser(
            prog="meshd recover",
            allow_abbrev=False,
            epilog=epilog,
            description="Make a cluster of one out of this manager's state. meshd must not run. Only if a majority of "
            "the managers is lost for good: what only they knew is lost. The old state stays beside the new one.",
        )
    made = argparse.ArgumentParser(
        prog="meshd restore",
        allow_abbrev=False,
        epilog=epilog,
        description="Make a cluster of a backup of mesh backup, with this machine as its only manager. meshd must not "
        "run. Other managers of before join it again by themselves if they can reach it.",
    )
    made.add_argument("file", metavar="FILE", type=Path)
    made.add_argument("--node", default="", metavar="NAME", help="which node this machine is; as it is called now")
    return made


def split(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of the command that `argv` begins with, and those that are the daemon's."""
    parsed, rest = _parser(argv[0]).parse_known_args(argv[1:])
    parsed.command = argv[0]
    return parsed, rest


def ask_unlock_key() -> str:
    """From the terminal, unseen, or from standard input."""
    return getpass("Unlock key: ") if sys.stdin.isatty() else sys.stdin.readline(UNLOCK_KEY_MAX)


def run(parsed: argparse.Namespace, config: Config, ask: Callable[[], str] = ask_unlock_key) -> list[str]:
    """Do it; what was done, in sentences. The state directory is this process's. Raises OfflineError.

    `ask` gives the unlock key, if one is needed.
    """
    try:
        home = home_of(config.store, Path(config.state_dir) / "manager", config.quorum_listen)
        if not isinstance(home, DiskHome):
            raise OfflineError("the state of this cluster is in etcd: use etcd's own tools, such as etcdutl snapshot")
        identity = identities.load(Path(config.state_dir))
        if parsed.command == "restore":
            return _restore(parsed.file, parsed.node, identity, config, ask)
        return _recover(identity, home, config, ask)
    except _REFUSALS as error:
        raise OfflineError(str(error)) from error
    except OSError as error:
        raise OfflineError(f"cannot write below {config.state_dir}: {error.strerror}") from error


def _wall_s() -> float:
    return time.time_ns() / 1e9


# --- recover ----------------------------------------------------------------------------------------------------------


def _recover(identity: Identity | None, home: DiskHome, config: Config, ask: Callable[[], str]) -> list[str]:
    if identity is None or identity.role != "manager":
        raise OfflineError("this machine is no manager: run meshd recover on one that still has its state")
    host = identity.address.rpartition(":")[0].strip("[]")
    vault = open_vault(Path(config.state_dir), identity, _wall_s)
    if vault.locked:
        vault.unlock(ask())
    vault.prepare(plain=True)
    done = recover(
        Path(config.state_dir) / "manager",
        identity.node_id,
        random.Random(secrets.randbits(64)),
        address=home.quorum_address(host),
        ring=vault,
    )
    identities.save(Path(config.state_dir), msgspec.structs.replace(identity, enrolled=True))
    said = [f"This manager goes on alone, from commit {done.version}."]
    if done.lost:
        said.append(f"No managers any more: {', '.join(done.lost)}.")
        said.append("Those that come back join it anew by themselves; remove the others with mesh node rm --force.")
    return said


# --- restore ----------------------------------------------------------------------------------------------------------


def _restore(file: Path, name: str, identity: Identity | None, config: Config, ask: Callable[[], str]) -> list[str]:
    directory = Path(config.state_dir) / "manager"
    backup = _opened(file, ask)
    if identity is not None and identity.cluster_id != backup.cluster_id:
        raise OfflineError(
            f"this machine is in cluster {identity.cluster_id}, and {file} is of {backup.cluster_id}: "
            f"move {config.state_dir} away first"
        )
    if directory.exists():
        raise OfflineError(f"{directory} exists: move it away before restoring a backup there")
    nodes = _nodes(backup)
    node = _which(nodes, name or config.node_name, identity)
    secret = identity.secret if identity is not None else IdSource(random.SystemRandom())()
    address = _address(config)
    port = (config.advertise_address.partition(":")[2] if ":" in config.advertise_address else "") or (
        config.listen.rpartition(":")[2]
    )
    own = msgspec.structs.replace(
        node,
        key_digest="",  # of this machine, which may be another than the node's before
        spec=msgspec.structs.replace(node.spec, role="manager"),
        secret_digest=secret_digest(secret),
        control_address=f"{address}:{port}",
    )
    vault = open_vault(Path(config.state_dir), identity, _wall_s)
    if vault.locked:
        vault.remove()  # of the manager that was here, whose state is gone: this one gets keys of its own
    papers = Papers(Path(config.state_dir), lambda: time.time_ns() // 1_000_000)
    own = _certified(own, backup, papers)
    rows = (row_of(own) if (row.kind, row.id) == ("node", own.id) else row for row in backup.state.rows.values())
    state = State.of_rows(backup.state.version, rows)
    vault.prepare(plain=False)
    restore(replace(backup, state=state), directory, ring=vault)
    asyncio.run(Locker(vault, papers).follow(_cluster(backup)))
    identities.save(
        Path(config.state_dir),
        Identity(
            node_id=own.id,
            node_number=own.number,
            secret=secret,
            cluster_id=backup.cluster_id,
            role="manager",
            data_address=address,
            managers=(own.control_address,),
            address=own.control_address,
        ),
    )
    return _said(file, backup, own, nodes)


def _opened(file: Path, ask: Callable[[], str]) -> Backup:
    """What is in a backup, which may need the unlock key of then."""
    key_id = key_of_backup(file)
    if not (version := backup_version(key_id)):
        return read_backup(file)
    try:
        return read_backup(file, Keys([backup_sealer(ask(), key_id, os.urandom)]))
    except Damaged as error:
        raise OfflineError(
            f"{file} cannot be read with that unlock key, or is damaged: it was made under number {version}"
        ) from error


def _cluster(backup: Backup) -> Cluster:
    found = next(decode(row.kind, row.blob) for row in backup.state.rows.values() if row.kind == "cluster")
    assert isinstance(found, Cluster)
    return found


def _certified(own: Node, backup: Backup, papers: Papers) -> Node:
    """Give this machine a certificate of the cluster, whose authority is in the backup."""
    objects = (decode(row.kind, row.blob) for row in backup.state.rows.values())
    snapshot = Snapshot.of(objects, backup.state.version)
    csr = asyncio.run(papers.request())
    serial = secrets.token_bytes(SERIAL_BYTES)
    try:
        issued = certify(snapshot, own, csr, _wall_s(), serial)
    except Unsigned as missing:
        signatures = Signatures(None, lambda: time.time_ns() // 1_000_000)
        asyncio.run(signatures.fetch(missing.order))
        issued = certify(snapshot, own, csr, _wall_s(), serial, signatures.take)
    asyncio.run(papers.keep(issued.chain, issued.roots))
    return issued.node


def _nodes(backup: Backup) -> dict[str, Node]:
    rows = [row for row in backup.state.rows.values() if row.kind == "node"]
    return {obj.id: obj for row in rows if isinstance(obj := decode(row.kind, row.blob), Node)}


def _which(nodes: dict[str, Node], name: str, identity: Identity | None) -> Node:
    """The node that this machine is."""
    if identity is not None and identity.node_id in nodes:
        return nodes[identity.node_id]
    found = [node for node in nodes.values() if name in (node.id, node.description.hostname)]
    if len(found) != 1:
        known = ", ".join(sorted(node.description.hostname for node in nodes.values())[:20])
        raise OfflineError(f'the backup has no single node "{name}": say with --node which of {known} this machine is')
    return found[0]


def _address(config: Config) -> str:
    asked = config.advertise_address.partition(":")[0]
    return str(machine.choose_address(asked, machine.addresses()))


def _said(file: Path, backup: Backup, own: Node, nodes: dict[str, Node]) -> list[str]:
    said = [
        f"Restored {len(nodes)} nodes and all else from {file}, as it was at commit {backup.state.version}.",
        f'This machine is node "{own.description.hostname}", the only manager, at {own.control_address}.',
    ]
    others = sorted(n.description.hostname for n in nodes.values() if n.spec.role == "manager" and n.id != own.id)
    if others:
        said.append(f"No managers yet: {', '.join(others)}. They join it anew by themselves if they reach it.")
    return said
