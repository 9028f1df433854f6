"""`mesh attach`, `mesh detach`, `mesh attachment`: containers that others than the cluster have started."""

from __future__ import annotations

from collections.abc import Sequence

import click

from control.model import Attachment, Network, Node
from mesh.cli.complete import names
from mesh.cli.lazy import AliasedGroup
from mesh.cli.output import Listing, ListOptions, list_options, print_list
from mesh.cli.session import Session, pass_session
from mesh.cli.show.attachments import COLUMNS, MORE, attachment_rows, sorted_attachments
from mesh.cli.show.names import down_nodes, node_names
from mesh.cli.show.plain import record


@click.command("attach")
@click.argument("container")
@click.option("--network", required=True, help="The network to put it on.", shell_complete=names("network"))
@click.option("--service", default="", help="Whose endpoint it is; without it, it has the container's name.")
@click.option("--port", "ports", multiple=True, metavar="[NAME=]PORT[/PROTOCOL]", help="A port it listens on.")
@click.option("--alias", "aliases", multiple=True, metavar="NAME", help="A further name of the service.")
@click.option("--check", default="", help="When it is well: tcp, tcp:5432, http:/healthz.")
@click.option("--weight", default="", metavar="0..100", help="Connections it gets beside others; 1 is usual.")
@pass_session
def attach(
    session: Session,
    container: str,
    network: str,
    service: str,
    ports: Sequence[str],
    aliases: Sequence[str],
    check: str,
    weight: str,
) -> None:
    """Put a container that runs on this machine on a network of the cluster, until it ends.

    Its labels mesh.service, mesh.port, mesh.aliases, mesh.check and mesh.weight say the same as the options. With the
    label mesh.network it is attached without being asked for.

    \b
    Examples:
      mesh attach old-database --network web --service db --port 5432 --check tcp
      docker run -d --label mesh.network=web --label mesh.service=db --label mesh.port=5432 postgres
    """
    said = {
        "mesh.service": service,
        "mesh.port": ",".join(ports),
        "mesh.aliases": ",".join(aliases),
        "mesh.check": check,
        "mesh.weight": weight,
    }
    labels = {label: value for label, value in said.items() if value}
    for line in session.client().attach(container, network, labels):
        click.echo(line)


@click.command("detach")
@click.argument("container")
@click.option("--network", default="", help="Only from this network.", shell_complete=names("network"))
@pass_session
def detach(session: Session, container: str, network: str) -> None:
    """Take a container off the networks that it was attached to, by `mesh attach` or by its labels.

    \b
    Examples:
      mesh detach old-database
      mesh detach --network web old-database
    """
    for line in session.client().detach(container, network):
        click.echo(line)


@click.group("attachment", cls=AliasedGroup)
def attachment() -> None:
    """Containers on networks of the cluster that others have started, on all nodes."""


@attachment.command("ls")
@list_options
@pass_session
def ls(session: Session, options: ListOptions) -> None:
    """List them: those of "docker run --network", of labels, and of "mesh attach".

    \b
    Filters: id, name, network, node, service.
    Examples:
      mesh attachment ls
      mesh attachment ls --filter network=web --format '{{.Name}} {{.Address}}'
    """
    client = session.client()
    found = sorted_attachments(client.list(Attachment, options.filters))
    nodes = client.list(Node) if found else []
    networks = {network.id: network.spec.name for network in client.list(Network)} if found else {}
    rows = attachment_rows(found, node_names(nodes), networks, down_nodes(nodes), no_trunc=options.no_trunc)
    print_list(options, Listing(COLUMNS, rows, [record(one) for one in found], MORE))
