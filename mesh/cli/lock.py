"""`mesh unlock` and `mesh unlock-key`: managers that start locked, and the key that opens them."""

from __future__ import annotations

import sys

import click

from mesh.cli.errors import ExitCode, Failure
from mesh.cli.session import Session, pass_session

# What is read of standard input: a key has 52 characters.
KEY_MAX = 256


def explain_key(key: str) -> str:
    """What to do with an unlock key that was just made."""
    return (
        'To unlock a manager after it restarts, run "mesh unlock" on it and give it this key:\n\n'
        f"    {key}\n\n"
        "Keep it where the managers are not: without it they cannot be restarted."
    )


@click.command("unlock-key")
@click.option("--rotate", "rotated", is_flag=True, help="Make another one first.")
@click.option("-q", "--quiet", is_flag=True, help="Only the key.")
@pass_session
def unlock_key(session: Session, rotated: bool, quiet: bool) -> None:
    """Show the key that managers are unlocked with after a restart.

    Managers that are down while it is changed still need the one before, so keep that until all are up.

    \b
    Examples:
      mesh unlock-key -q
      mesh unlock-key --rotate
    """
    client = session.client()
    key = client.rotate_unlock_key() if rotated else client.unlock_key()
    if not key:
        raise Failure('this cluster has no unlock key: "mesh cluster update --autolock" makes one', ExitCode.REFUSED)
    click.echo(key if quiet else explain_key(key))


@click.command("unlock")
@pass_session
def unlock(session: Session) -> None:
    """Unlock this manager, which was restarted. The key is asked for, or read from standard input.

    \b
    Examples:
      mesh unlock
      mesh unlock < unlock-key
    """
    client = session.client()
    if sys.stdin.isatty():
        key = click.prompt("Please enter the unlock key", hide_input=True, err=True, type=str)
    else:
        key = sys.stdin.read(KEY_MAX)
    client.unlock(key.strip())
    click.echo("This manager is unlocked.")
