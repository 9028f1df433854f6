"""`mesh user`: certificates for people and programs that call the cluster from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from control.model import User
from mesh.cli.complete import names
from mesh.cli.contexts import ClusterContext, encode_context, is_context_name, write_context
from mesh.cli.errors import ExitCode, Failure
from mesh.cli.lazy import AliasedGroup
from mesh.cli.options import DURATION
from mesh.cli.output import Listing, ListOptions, list_options, print_list
from mesh.cli.session import Session, for_each, pass_session
from mesh.cli.show.plain import record
from mesh.cli.text.duration import human_duration
from mesh.cli.text.template import Record

COLUMNS = {"Name": "NAME", "Role": "ROLE", "Created": "CREATED", "Expires": "EXPIRES"}
MORE = {"ID": "NAME", "CreatedAt": "CREATED AT", "ExpiresAt": "EXPIRES AT"}


@click.group(cls=AliasedGroup)
def user() -> None:
    """Certificates for people and programs elsewhere: a viewer looks, an operator runs services, an admin governs."""


@user.command("add")
@click.argument("name")
@click.option("--role", type=click.Choice(["viewer", "operator", "admin"]), required=True)
@click.option("--expires", type=DURATION, metavar="DURATION", help="When it ends, such as 720h. [a year]")
@click.option("--manager", "managers", multiple=True, metavar="HOST:PORT", help="Where the user reaches managers.")
@click.option("--context-name", metavar="NAME", help="What the context is to be called. [the cluster's name]")
@click.option("-o", "--output", metavar="FILE", help='Where to write the context; "-" prints it. [NAME.context.json]')
@pass_session
def add(
    session: Session,
    name: str,
    role: str,
    expires: float | None,
    managers: Sequence[str],
    context_name: str | None,
    output: str | None,
) -> None:
    """Make a key and a certificate for a user, and write them into a context file.

    The key is made here and goes nowhere but into the file (mode 0600). Give the file to the user, who says "mesh
    context add FILE". To take it back: "mesh user rm NAME", every manager refuses the user then at once.

    \b
    Examples:
      mesh user add alice --role admin
      mesh user add pipeline --role operator --expires 720h -o - | ssh ci mesh context add -
    """
    file = Path(output or f"{name}.context.json")
    if output != "-" and file.exists():
        raise Failure(f"{file} exists already: choose another with --output", ExitCode.CONFLICT)
    client = session.client()
    from control.ca.requests import make_request
    from control.ca.root import key_pem, new_key
    from control.model import Cluster
    from control.rpc import control_pb2 as pb

    called = context_name or client.get(Cluster, "").spec.name
    if not is_context_name(called):
        called = "cluster"  # of a name that no file may have, or the one that cannot be a context's
    key = new_key()
    reply = client.add_user(pb.AddUserRequest(name=name, role=role, csr=make_request(key), life_s=expires or 0.0))
    made = ClusterContext(
        name=called,
        user=name,
        role=role,
        managers=tuple(managers or reply.managers),
        roots=reply.roots.decode(),
        certificate=reply.certificate.decode(),
        key=key_pem(key).decode(),
    )
    if output == "-":
        click.echo(encode_context(made), nl=False)
        return
    try:
        write_context(file, made, replace=False)
    except Failure:
        client.remove("user", name)  # nobody has its key
        raise
    click.echo(str(file))


@user.command("ls")
@list_options
@pass_session
def ls(session: Session, options: ListOptions) -> None:
    """List users.

    \b
    Filters: name.
    Examples:
      mesh user ls
      mesh user ls --format '{{.Name}} {{.Role}}'
    """
    found = sorted(session.client().list(User, options.filters), key=lambda one: one.id)
    now_ms = session.wall_ms()
    rows = [
        Record(
            ID=one.id,
            Name=one.id,
            Role=one.role,
            Created=f"{human_duration((now_ms - one.meta.created_ms) / 1000)} ago",
            Expires=_until(one.expires_ms, now_ms),
            CreatedAt=one.meta.created_ms,
            ExpiresAt=one.expires_ms,
        )
        for one in found
    ]
    print_list(options, Listing(COLUMNS, rows, [record(one) for one in found], MORE))


def _until(end_ms: int, now_ms: int) -> str:
    left_s = (end_ms - now_ms) / 1000
    return f"in {human_duration(left_s)}" if left_s > 0 else f"{human_duration(-left_s)} ago"


@user.command("rm")
@click.argument("users", nargs=-1, required=True, metavar="USER...", shell_complete=names("user"))
@pass_session
def rm(session: Session, users: Sequence[str]) -> None:
    """Remove users. Every manager refuses them at once, also on connections that they have.

    \b
    Examples:
      mesh user rm alice
    """
    client = session.client()

    def remove(name: str) -> None:
        client.remove("user", name)
        click.echo(name)

    for_each(users, remove)
