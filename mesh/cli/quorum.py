"""`mesh quorum`: the managers, and whether they can agree. Answered without a leader."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mesh.cli.errors import ExitCode
from mesh.cli.output import print_objects
from mesh.cli.session import Session, pass_session
from mesh.cli.text.size import format_size
from mesh.cli.text.table import table
from mesh.cli.text.template import Record

if TYPE_CHECKING:
    from control.rpc import control_pb2 as pb

_HEADER = ["NODE", "ADDRESS", "STATUS", "VOTE", "TERM", "VERSION", "SIZE", "MESSAGE"]


@click.group()
def quorum() -> None:
    """The managers, and whether they can agree."""


@quorum.command("status")
@click.option("-f", "--format", "format_", metavar="FORMAT", default="table", help="table, json, jsonl or a template.")
@pass_session
def status(session: Session, format_: str) -> None:
    """How the managers are, each asked for itself; also when they have no leader.

    The exit code is 7 when one does not answer, or nothing can be agreed on.

    \b
    Examples:
      mesh quorum status
      mesh quorum status --format json
    """
    reply = session.client().survey()
    troubles = problems(reply)
    if format_ == "table":
        click.echo(table(_HEADER, [_cells(row) for row in reply.managers]), nl=False)
        for sentence in troubles or [tolerance(sum(row.voter for row in reply.managers) or len(reply.managers))]:
            click.echo(sentence)
    else:
        print_objects(format_, [_record(row) for row in reply.managers])
    if troubles:
        raise click.exceptions.Exit(ExitCode.DEGRADED)


def tolerance(managers: int) -> str:
    """What so many managers can bear, in one sentence."""
    lost = (managers - 1) // 2
    if managers == 1:
        return "1 manager: nothing can be changed while it is away, and what runs goes on"
    many = {0: "none", 1: "one"}.get(lost, str(lost))
    return f"{managers} managers tolerate the loss of {many}"


def even(managers: int) -> str:
    """A warning about a number of managers that brings nothing over one less; "" if it is odd."""
    if managers % 2 or not managers:
        return ""
    return f"{tolerance(managers)}, as {managers - 1} would: an odd number is better, {managers + 1} tolerate one more"


def problems(reply: pb.QuorumReply) -> list[str]:
    """What is wrong, one sentence each."""
    voters = [row for row in reply.managers if row.voter] or list(reply.managers)
    answering = sum(row.status != "unreachable" for row in voters)
    needed = len(voters) // 2 + 1
    found = []
    if not any(row.status == "leader" for row in reply.managers):
        known = f"only {reply.leader} is said to lead" if reply.leader else "no leader"
        found.append(f"{known}: {answering} of {len(voters)} managers answer, {needed} are needed to agree on anything")
        if answering < needed:
            found.append(
                "what runs goes on; bring managers back, or, if they are lost for good, see meshd recover --help"
            )
    else:
        away = [row.name or row.node_id for row in reply.managers if row.status == "unreachable"]
        found += [f'manager "{name}" does not answer' for name in away]
    found += [f'manager "{row.name or row.node_id}": {row.said.message}' for row in reply.managers if row.said.message]
    if differing(reply):
        found.append("managers hold different states of one version: this is a bug; keep them, and restore a backup")
    return found


def differing(reply: pb.QuorumReply) -> bool:
    """Whether two managers have applied the same commits and do not hold the same."""
    seen: dict[int, str] = {}
    said = [row.said for row in reply.managers if row.said.digest]
    return any(seen.setdefault(look.version, look.digest) != look.digest for look in said)


def _cells(row: pb.QuorumRow) -> list[str]:
    there = row.status != "unreachable"
    message = row.said.message or (row.error.partition("\n")[0][:80] if not there else "")
    return [
        row.name or row.node_id,
        row.address,
        row.status.capitalize(),
        ("yes" if row.voter else "no") if there or row.voter else "",
        str(row.said.term) if there else "",
        str(row.said.version) if there else "",
        format_size(row.said.size_bytes) if there else "",
        message,
    ]


def _record(row: pb.QuorumRow) -> Record:
    return Record(
        Id=row.node_id,
        Name=row.name,
        Address=row.address,
        Status=row.status,
        Voter=row.voter,
        Error=row.error,
        Role=row.said.role,
        Term=row.said.term,
        Version=row.said.version,
        Digest=row.said.digest,
        Leader=row.said.leader,
        SizeBytes=row.said.size_bytes,
        Recoveries=row.said.recoveries,
        Message=row.said.message,
    )
