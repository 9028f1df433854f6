"""`mesh network`: networks that reach over all nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from control.model import Network, NetworkSpec
from mesh.cli.complete import names
from mesh.cli.lazy import AliasedGroup
from mesh.cli.output import Listing, ListOptions, inspect_option, list_options, print_list, print_objects
from mesh.cli.session import Session, for_each, pass_session
from mesh.cli.show.networks import COLUMNS, MORE, network_rows, sorted_networks
from mesh.cli.show.plain import record
from mesh.cli.text.pairs import parse_labels


@click.group(cls=AliasedGroup)
def network() -> None:
    """Networks that reach over all nodes."""


@network.command("create")
@click.argument("name")
@click.option("--subnet", metavar="PREFIX", default="", help="Its addresses, such as 10.20.0.0/20. [from the pools]")
@click.option("--ipv6", is_flag=True, help="IPv6 addresses besides.")
@click.option("--subnet6", metavar="PREFIX", default="", help="Its IPv6 addresses. [unique local ones]")
@click.option("--encrypted", is_flag=True, help="Encrypted between nodes (WireGuard), or not carried at all.")
@click.option("--internal", is_flag=True, help="No way out to the world.")
@click.option("--label", "-l", "labels", metavar="KEY[=VALUE]", multiple=True, help="Label of the network.")
@pass_session
def create(session: Session, /, name: str, labels: Sequence[str], **options: Any) -> None:
    """Create a network.

    \b
    Examples:
      mesh network create web
      mesh network create --subnet 10.20.0.0/20 --internal --label tier=back back
      mesh network create --ipv6 both
      mesh network create --encrypted private
    """
    options["ipv6"] = options["ipv6"] or bool(options["subnet6"])
    spec = NetworkSpec(name=name, labels=parse_labels(labels), **options)
    created = session.client().create_network(spec)
    for warning in created.warnings:
        session.warn(warning)
    click.echo(created.id)


@network.command("ls")
@list_options
@pass_session
def ls(session: Session, options: ListOptions) -> None:
    """List networks.

    \b
    Filters: id, name, label.
    Examples:
      mesh network ls
      mesh network ls --format '{{.Name}} {{.Subnet}}'
    """
    found = sorted_networks(session.client().list(Network, options.filters))
    rows = network_rows(found, no_trunc=options.no_trunc)
    print_list(options, Listing(COLUMNS, rows, [record(one) for one in found], MORE))


@network.command("inspect")
@click.argument("networks", nargs=-1, required=True, metavar="NETWORK...", shell_complete=names("network"))
@inspect_option
@pass_session
def inspect(session: Session, networks: Sequence[str], format_: str) -> None:
    """Show everything about networks.

    \b
    Examples:
      mesh network inspect web
      mesh network inspect --format '{{.Subnet}}' web
    """
    client = session.client()
    print_objects(format_, [record(client.get(Network, name)) for name in networks])


@network.command("rm")
@click.argument("networks", nargs=-1, required=True, metavar="NETWORK...", shell_complete=names("network"))
@pass_session
def rm(session: Session, networks: Sequence[str]) -> None:
    """Remove networks that no service uses.

    \b
    Examples:
      mesh network rm web
    """
    client = session.client()

    def remove(name: str) -> None:
        client.remove("network", name)
        click.echo(name)

    for_each(networks, remove)
