"""`mesh ca`: the cluster's certificate authority."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import click

from mesh.cli.errors import ExitCode, Failure
from mesh.cli.output import print_objects
from mesh.cli.session import Session, pass_session

if TYPE_CHECKING:
    from control.rpc import control_pb2 as pb

POLL_S = 0.5
# What is read of a file that is said to be a certificate or a key.
PEM_MAX_BYTES = 64 * 1024


@click.group()
def ca() -> None:
    """The cluster's certificate authority."""


@ca.command("show")
@click.option("-f", "--format", "format_", metavar="FORMAT", default="pem", help="pem, json, jsonl or a template.")
@pass_session
def show(session: Session, format_: str) -> None:
    """Print the root certificate that the nodes believe, or how it is.

    \b
    Examples:
      mesh ca show > root.pem
      mesh ca show --format '{{.Digest}}'
    """
    reply = session.client().authority()
    if format_ == "pem":
        click.echo(reply.certificate, nl=False)
        return
    record: dict[str, object] = {
        "digest": reply.digest,
        "changing": reply.changing,
        "done": reply.done,
        "nodes": reply.total,
        "away": reply.away,
    }
    print_objects("jsonl" if format_ == "json" else format_, [record])


@ca.command("rotate")
@click.option("--ca-cert", type=click.File("rb"), metavar="FILE", help="A root of your own, PEM. Default: a new one.")
@click.option("--ca-key", type=click.File("rb"), metavar="FILE", help="Its key, PEM, without a passphrase.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait until all nodes have followed.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.option(
    "--timeout",
    "timeout_s",
    type=float,
    metavar="SECONDS",
    default=600.0,
    show_default=True,
    help="How long to wait; the change goes on by itself.",
)
@pass_session
def rotate(
    session: Session,
    ca_cert: BinaryIO | None,
    ca_key: BinaryIO | None,
    *,
    detach: bool,
    quiet: bool,
    timeout_s: float,
) -> None:
    """Change the root: every node gets another certificate, then the old root is believed no more.

    Nothing stops meanwhile. Nodes that are down are not waited for: they follow when they are back. Join tokens are
    others afterwards.

    \b
    Examples:
      mesh ca rotate
      mesh ca rotate --ca-cert root.pem --ca-key root.key --detach
    """
    certificate, key = own_root(ca_cert, ca_key)
    client = session.client()
    reply = client.rotate_authority(certificate, key)
    if detach:
        click.echo(reply.digest)
        return
    end_s, told = session.monotonic_s() + timeout_s, ""
    while reply.changing:
        if not quiet and (line := progress(reply)) != told:
            click.echo(line)
            told = line
        if session.monotonic_s() > end_s:
            raise Failure(f"not done after {timeout_s:g} s, and goes on: {progress(reply)}", ExitCode.TIMED_OUT)
        session.sleep(POLL_S)
        reply = client.authority()
    click.echo(reply.digest)


def own_root(ca_cert: BinaryIO | None, ca_key: BinaryIO | None, *, external: str = "") -> tuple[bytes, bytes]:
    """What is in the files of a root that a user brings: PEM both; empty without. Raises Failure.

    An `external` CA has the key itself.
    """
    if external:
        if ca_cert is None or ca_key is not None:
            raise Failure("--external-ca needs --ca-cert, its root, and no --ca-key", ExitCode.USAGE)
        return ca_cert.read(PEM_MAX_BYTES + 1), b""
    if (ca_cert is None) != (ca_key is None):
        raise Failure("--ca-cert and --ca-key come together", ExitCode.USAGE)
    certificate, key = (file.read(PEM_MAX_BYTES + 1) if file is not None else b"" for file in (ca_cert, ca_key))
    return certificate, key


def progress(reply: pb.AuthorityReply) -> str:
    """How far a change is, in one line."""
    away = f"; {reply.away} down, not waited for" if reply.away else ""
    return f"{reply.done} of {reply.total} nodes have a certificate of the new root{away}"
