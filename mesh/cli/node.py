"""`mesh node`: the machines of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import click
from msgspec.structs import replace

from control.model import Availability, Node, NodeSpec, Role, Task
from mesh.cli.complete import names
from mesh.cli.errors import ExitCode, Failure
from mesh.cli.lazy import AliasedGroup
from mesh.cli.output import Listing, ListOptions, inspect_option, list_options, print_list, print_objects
from mesh.cli.quorum import even
from mesh.cli.session import Session, for_each, pass_session, retry_overtaken
from mesh.cli.show.names import node_name, node_names
from mesh.cli.show.nodes import COLUMNS, MORE, marked, node_records, node_rows, pretty_node
from mesh.cli.show.tasks import PS_COLUMNS, PS_MORE, sorted_tasks, task_records, task_rows
from mesh.cli.text.pairs import parse_labels

if TYPE_CHECKING:
    from mesh.cli.client import Client


@click.group(cls=AliasedGroup)
def node() -> None:
    """Machines of the cluster. The word "self" stands for this one."""


def _reference(client: Client, name: str) -> str:
    """What the manager is asked for: "self" is this machine."""
    return client.node_id if name == "self" else name


def _standing(client: Client) -> dict[str, str]:
    """What the managers are, by node id."""
    return {row.node_id: row.status for row in client.survey().managers}


@node.command("ls")
@list_options
@pass_session
def ls(session: Session, options: ListOptions) -> None:
    """List nodes. A star marks this machine.

    \b
    Filters: id, name, role, label.
    Examples:
      mesh node ls
      mesh node ls --filter role=worker --format '{{.Hostname}} {{.Address}}'
    """
    client = session.client()
    nodes, self_id = client.list(Node, options.filters), client.node_id
    standing = _standing(client)
    rows = node_rows(nodes, self_id, standing)
    if options.format == "table" and not options.quiet:
        rows = marked(rows)
    print_list(options, Listing(COLUMNS, rows, node_records(nodes, self_id, standing), MORE))


@node.command("inspect")
@click.argument("nodes", nargs=-1, metavar="[NODE...]", shell_complete=names("node"))
@click.option("--pretty", is_flag=True, help="For people.")
@inspect_option
@pass_session
def inspect(session: Session, nodes: Sequence[str], pretty: bool, format_: str) -> None:
    """Show everything about nodes; without a name about this one.

    \b
    Examples:
      mesh node inspect self --pretty
      mesh node inspect --format '{{.Status.State}}' h2
    """
    client = session.client()
    self_id = client.node_id
    standing = _standing(client)
    found = [client.get(Node, self_id if name == "self" else name) for name in nodes or ("self",)]
    if pretty:
        click.echo("\n".join(pretty_node(one, session.wall_ms()) for one in found), nl=False)
    else:
        print_objects(format_, [record for one in found for record in node_records([one], self_id, standing)])


@node.command("ps")
@click.argument("nodes", nargs=-1, metavar="[NODE...]", shell_complete=names("node"))
@list_options
@pass_session
def ps(session: Session, nodes: Sequence[str], options: ListOptions) -> None:
    """List the tasks of nodes; without a name those of this one.

    \b
    Filters: id, name, service, desired-state.
    Examples:
      mesh node ps
      mesh node ps h2 --filter desired-state=running
    """
    client = session.client()
    ids = [client.get(Node, _reference(client, name)).id for name in dict.fromkeys(nodes or ("self",))]
    found = sorted_tasks(client.list(Task, {**options.filters, "node": ids}))
    named = node_names(client.list(Node))
    rows = task_rows(found, named, now_ms=session.wall_ms(), no_trunc=options.no_trunc, tree=True)
    print_list(options, Listing(PS_COLUMNS, rows, task_records(found, named), PS_MORE))


@node.command("update")
@click.argument("name", metavar="NODE", shell_complete=names("node"))
@click.option(
    "--availability",
    type=click.Choice(["active", "pause", "drain"]),
    help="active: takes tasks; pause: keeps those it has; drain: has none.",
)
@click.option("--label-add", metavar="KEY[=VALUE]", multiple=True, help="Add or change a label.")
@click.option("--label-rm", metavar="KEY", multiple=True, help="Remove a label.")
@click.option("--role", type=click.Choice(["manager", "worker"]), help="What it does.")
@pass_session
def update(
    session: Session,
    name: str,
    availability: str | None,
    label_add: Sequence[str],
    label_rm: Sequence[str],
    role: str | None,
) -> None:
    """Change a node.

    \b
    Examples:
      mesh node update --availability drain h2
      mesh node update --label-add zone=a --label-rm old h3
    """
    if not (availability or label_add or label_rm or role):
        raise click.UsageError("nothing to change: see the options")
    added = parse_labels(label_add)

    def decide(one: Node) -> NodeSpec:
        missing = [key for key in label_rm if key not in one.spec.labels]
        if missing:
            raise Failure(f'node "{node_name(one)}" has no label {", ".join(missing)}', ExitCode.NOT_FOUND)
        kept = {key: value for key, value in one.spec.labels.items() if key not in label_rm}
        return NodeSpec(
            role=cast(Role, role or one.spec.role),
            availability=cast(Availability, availability or one.spec.availability),
            labels={**kept, **added},
        )

    _change(session.client(), name, decide)
    click.echo(name)


def _change(client: Client, name: str, decide: Callable[[Node], NodeSpec]) -> Node:
    """Replace a node's spec by what `decide` makes of it; how the node was before."""

    def step() -> Node:
        seen = client.get(Node, _reference(client, name))
        spec = decide(seen)
        if spec != seen.spec:
            client.update_node(seen.id, seen.meta.version, spec)
        return seen

    return retry_overtaken(step)


def warn_of_managers(session: Session) -> None:
    """An even number of managers tolerates no more than one less would."""
    try:
        managers = sum(one.spec.role == "manager" for one in session.client().list(Node, {"role": ["manager"]}))
    except Failure:
        return  # what was asked for is done; this node may just have become a worker, which may not ask
    if sentence := even(managers):
        session.warn(sentence)


def _give_role(session: Session, nodes: Sequence[str], role: Role) -> None:
    client = session.client()

    def give(name: str) -> None:
        before = _change(client, name, lambda one: replace(one.spec, role=role))
        shown = node_name(before)
        if before.spec.role == role:
            click.echo(f"node {shown} is already a {role}")
        else:
            click.echo(f"node {shown} becomes a {role}")

    for_each(nodes, give)
    warn_of_managers(session)


@node.command("promote")
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...", shell_complete=names("node"))
@pass_session
def promote(session: Session, nodes: Sequence[str]) -> None:
    """Make nodes managers.

    \b
    Examples:
      mesh node promote h2 h3

    A cluster of 3 managers tolerates the loss of one, one of 5 that of two.
    """
    _give_role(session, nodes, "manager")


@node.command("demote")
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...", shell_complete=names("node"))
@pass_session
def demote(session: Session, nodes: Sequence[str]) -> None:
    """Make managers workers. Refused if those who are left could not agree on anything.

    \b
    Examples:
      mesh node demote h3
    """
    _give_role(session, nodes, "worker")


@node.command("rm")
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...", shell_complete=names("node"))
@click.option("--force", is_flag=True, help="Also one that is not down.")
@pass_session
def rm(session: Session, nodes: Sequence[str], force: bool) -> None:
    """Forget nodes that are down.

    \b
    Examples:
      mesh node rm h3
      mesh node rm --force h3
    """
    client = session.client()

    def remove(name: str) -> None:
        client.remove("node", _reference(client, name), force=force)
        click.echo(name)

    for_each(nodes, remove)
