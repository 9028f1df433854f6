"""The file that says who this machine is in its cluster: `<state_dir>/identity.json`, mode 0600, written whole.

Its presence is what makes a daemon active after a restart. It holds the node's secret, so it is for root only.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from control.ca.disk import CredentialsError, check_mode, replace_file
from control.model import Role


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who this node is. `address` is host:port of its manager API (managers only)."""

    node_id: str
    node_number: int
    secret: str
    cluster_id: str
    role: Role
    data_address: str
    managers: tuple[str, ...]
    address: str = ""
    enrolled: bool = True  # managers only: it has its place among the managers


class IdentityError(Exception):
    """The identity file is there but cannot be used. One sentence for the user."""


def load(state_dir: Path) -> Identity | None:
    """The identity, or None on a machine that is in no cluster. Raises IdentityError."""
    path = state_dir / "identity.json"
    try:
        check_mode(path)
        return msgspec.json.decode(path.read_bytes(), type=Identity)
    except FileNotFoundError:
        return None
    except CredentialsError as error:
        raise IdentityError(str(error)) from error
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise IdentityError(f"cannot read {path}: {error}; restore it, or remove {state_dir} to start anew") from error


def save(state_dir: Path, identity: Identity) -> None:
    """Write the identity, durably. Raises OSError."""
    replace_file(state_dir / "identity.json", msgspec.json.format(msgspec.json.encode(identity)))


def forget(state_dir: Path) -> None:
    """Leave the cluster for good."""
    (state_dir / "identity.json").unlink(missing_ok=True)
