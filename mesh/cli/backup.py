"""`mesh backup`: the state of the cluster as one file, taken while it runs."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mesh.cli.errors import ExitCode, Failure
from mesh.cli.session import Session, pass_session
from mesh.cli.text.size import format_size


@click.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-f", "--force", is_flag=True, help="Also over a file that exists.")
@pass_session
def backup(session: Session, file: Path, force: bool) -> None:
    """Write the state of the cluster to a file, from any node, while it runs.

    It holds everything that the managers know, secrets too, so only its owner may read it. A cluster is made of it
    with "meshd restore FILE" on a machine whose meshd does not run.

    \b
    Examples:
      mesh backup /root/mesh-$(date +%F)
      mesh backup --force /root/mesh-latest
    """
    if file.exists() and not force:
        raise Failure(f"{file} exists: use another name, or --force", ExitCode.CONFLICT)
    pieces = session.client().backup()
    unfinished = file.with_name(file.name + ".part")
    try:
        size = 0
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            for piece in pieces:
                size += out.write(piece)
            out.flush()
            os.fsync(out.fileno())
        os.replace(unfinished, file)
    except OSError as error:
        raise Failure(f"cannot write {file}: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    click.echo(f"{file}: {format_size(size)}")
