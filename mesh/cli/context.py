"""`mesh context`: clusters elsewhere that this machine calls, and as whom."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from mesh.cli.contexts import DEFAULT, FILE_MAX_BYTES, ClusterContext, parse_context, read_context
from mesh.cli.errors import ExitCode, Failure
from mesh.cli.lazy import AliasedGroup
from mesh.cli.output import Listing, ListOptions, inspect_option, list_options, print_list, print_objects
from mesh.cli.session import Session, for_each, pass_session
from mesh.cli.text.template import Record

COLUMNS = {"Name": "NAME", "User": "USER", "Role": "ROLE", "Managers": "MANAGERS"}
MORE = {"ID": "NAME", "Current": "CURRENT"}


@click.group(cls=AliasedGroup)
def context() -> None:
    """Clusters elsewhere that this machine calls. "default" is the daemon of this machine."""


@context.command("add")
@click.argument("file")
@click.option("--name", metavar="NAME", help="What to call it. [as the file says]")
@click.option("--use", is_flag=True, help="Use it from now on.")
@pass_session
def add(session: Session, file: str, name: str | None, use: bool) -> None:
    """Keep a context that "mesh user add" has made; "-" reads it from standard input.

    \b
    Examples:
      mesh context add alice.context.json --use
      mesh context add - --name office < alice.context.json
    """
    if file == "-":
        found = parse_context(sys.stdin.buffer.read(FILE_MAX_BYTES + 1), "what was read")
    else:
        found = read_context(Path(file))
    found = msgspec.structs.replace(found, name=name or found.name)
    contexts = session.contexts()
    contexts.put(found, replace=False)
    if use:
        contexts.use(found.name)
    click.echo(found.name)


@context.command("ls")
@list_options
@pass_session
def ls(session: Session, options: ListOptions) -> None:
    """List contexts. A star marks the one that is used.

    \b
    Examples:
      mesh context ls
      mesh context ls --format '{{.Name}} {{.Managers}}'
    """
    contexts, used = session.contexts(), session.context or DEFAULT
    here = ClusterContext(name=DEFAULT, user="", role="", managers=(session.socket,), roots="", certificate="", key="")
    found = [here, *(contexts.get(name) for name in contexts.names())]
    plain = options.format == "table" and not options.quiet
    rows = [
        Record(
            ID=one.name,
            Name=one.name + " *" * (plain and one.name == used),
            User=one.user,
            Role=one.role,
            Managers=", ".join(one.managers),
            Current="true" if one.name == used else "false",
        )
        for one in found
    ]
    print_list(options, Listing(COLUMNS, rows, [_shown(one) for one in found], MORE))


@context.command("use")
@click.argument("name")
@pass_session
def use(session: Session, name: str) -> None:
    """Use a context from now on, unless --context, --socket, MESH_CONTEXT or MESH_SOCKET say otherwise.

    \b
    Examples:
      mesh context use office
      mesh context use default
    """
    session.contexts().use(name)
    click.echo(name)


@context.command("show")
@click.argument("name", required=False)
@inspect_option
@pass_session
def show(session: Session, name: str | None, format_: str) -> None:
    """Show a context; without a name the one that is used. Its key is left out.

    \b
    Examples:
      mesh context show
      mesh context show office --format '{{.expires}}'
    """
    chosen = name or session.context
    if chosen in ("", DEFAULT):
        print_objects(format_, [Record(name=DEFAULT, socket=session.socket)])
        return
    found = session.contexts().get(chosen)
    from control.ca.root import CaError, digest, load_certificates

    try:
        leaf = load_certificates(found.certificate.encode())[0]
        roots = [digest(root) for root in load_certificates(found.roots.encode())]
    except (CaError, IndexError) as error:
        raise Failure(f'context "{chosen}" holds no certificate: {error}') from error
    print_objects(
        format_,
        [Record({**_shown(found), "expires": f"{leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}", "roots": roots})],
    )


@context.command("rm")
@click.argument("contexts", nargs=-1, required=True, metavar="NAME...")
@pass_session
def rm(session: Session, contexts: Sequence[str]) -> None:
    """Forget contexts. The users stay: an administrator removes them with "mesh user rm".

    \b
    Examples:
      mesh context rm office
    """
    kept = session.contexts()

    def remove(name: str) -> None:
        kept.remove(name)
        click.echo(name)

    for_each(contexts, remove)


@context.command("renew")
@click.argument("name", required=False)
@pass_session
def renew(session: Session, name: str | None) -> None:
    """Get another certificate with the same end, and the roots of now: needed after "mesh ca rotate".

    \b
    Examples:
      mesh context renew
      mesh context renew office
    """
    chosen = name or session.context
    if chosen in ("", DEFAULT):
        raise Failure("which context? There is none in use", ExitCode.USAGE)
    kept = session.contexts()
    from mesh.cli.renewing import renewed

    kept.put(asyncio.run(renewed(kept.get(chosen), session.wall_ms() / 1000)), replace=True)
    click.echo(chosen)


def _shown(one: ClusterContext) -> Record:
    """Without what is secret, or long."""
    return Record(name=one.name, user=one.user, role=one.role, managers=list(one.managers))
