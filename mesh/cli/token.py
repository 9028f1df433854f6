"""Join tokens: `mesh token show|rotate ROLE`, and Docker's `mesh join-token`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from control.model import Cluster
from mesh.cli.lazy import AliasedGroup
from mesh.cli.session import Session, pass_session

if TYPE_CHECKING:
    from mesh.cli.client import Client

_ROLE = click.Choice(["worker", "manager"])


@click.group(cls=AliasedGroup)
def token() -> None:
    """Join tokens: they let a machine into the cluster, and say as what."""


def join_command(token_text: str, manager: str) -> str:
    """What to type on the other machine."""
    return f"mesh join --token {token_text} {manager}"


def _show(client: Client, role: str, *, quiet: bool) -> None:
    cluster = client.get(Cluster, "")
    _print(client, role, cluster.manager_token if role == "manager" else cluster.worker_token, quiet=quiet)


def _rotate(client: Client, role: str, *, quiet: bool) -> None:
    made = client.rotate_token(role)
    if not quiet:
        click.echo(f"the {role} token is another one now; the old one is worth nothing any more\n")
    _print(client, role, made, quiet=quiet)


def _print(client: Client, role: str, text: str, *, quiet: bool) -> None:
    if quiet:
        click.echo(text)
        return
    managers = client.managers
    manager = managers[0] if managers else "MANAGER:7377"
    click.echo(f"To add a {role} to this cluster, run the following command on it:\n")
    click.echo(f"    {join_command(text, manager)}\n")


@token.command("show")
@click.argument("role", type=_ROLE)
@click.option("-q", "--quiet", is_flag=True, help="Only the token.")
@pass_session
def show(session: Session, role: str, quiet: bool) -> None:
    """Show the token that machines join with.

    \b
    Examples:
      mesh token show worker
      mesh join --token $(mesh token show -q worker) 10.0.0.1:7377
    """
    _show(session.client(), role, quiet=quiet)


@token.command("rotate")
@click.argument("role", type=_ROLE)
@click.option("-q", "--quiet", is_flag=True, help="Only the token.")
@pass_session
def rotate(session: Session, role: str, quiet: bool) -> None:
    """Make a new token; the old one is worth nothing any more. Members are not affected.

    \b
    Examples:
      mesh token rotate worker
    """
    _rotate(session.client(), role, quiet=quiet)


@click.command("join-token")
@click.argument("role", type=_ROLE)
@click.option("--rotate", "rotated", is_flag=True, help="Make a new one first.")
@click.option("-q", "--quiet", is_flag=True, help="Only the token.")
@pass_session
def join_token(session: Session, role: str, rotated: bool, quiet: bool) -> None:
    """Show or rotate a join token, as `docker swarm join-token` does.

    \b
    Examples:
      mesh join-token worker
      mesh join-token --rotate -q manager
    """
    (_rotate if rotated else _show)(session.client(), role, quiet=quiet)
