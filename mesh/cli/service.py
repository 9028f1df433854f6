"""`mesh service`: what should run, under which name."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from control.model import Network, Node, Service, Task
from mesh.cli.complete import names
from mesh.cli.lazy import AliasedGroup
from mesh.cli.output import (
    Listing,
    ListOptions,
    inspect_option,
    list_options,
    print_list,
    print_objects,
)
from mesh.cli.remote_logs import service_logs
from mesh.cli.service_change import change_service, create, update
from mesh.cli.session import Session, for_each, pass_session
from mesh.cli.show import services as show
from mesh.cli.show.names import down_nodes, node_names
from mesh.cli.show.tasks import PS_COLUMNS, PS_MORE, sorted_tasks, task_records, task_rows
from mesh.cli.spec import scaled_service
from mesh.cli.text import TextError
from mesh.cli.wait import wait_for_service, wait_options

if TYPE_CHECKING:
    from mesh.cli.client import Client


@click.group(cls=AliasedGroup)
def service() -> None:
    """Services: what should run, and under which name."""


service.add_command(create)
service.add_command(update)
service.add_command(service_logs)


@service.command("ls")
@list_options
@pass_session
def ls(session: Session, options: ListOptions) -> None:
    """List services.

    \b
    Filters: id, name, label, mode.
    Examples:
      mesh service ls
      mesh service ls --filter label=tier=front --format '{{.Name}} {{.Replicas}}'
      mesh service ls --format json
    """
    client = session.client()
    found = show.sorted_services(client.list(Service, options.filters))
    tasks = _tasks_by_service(client, found)
    down = down_nodes(client.list(Node)) if found else frozenset()
    rows = show.service_rows(found, tasks, down, no_trunc=options.no_trunc)
    print_list(options, Listing(show.COLUMNS, rows, show.service_records(found, tasks, down), show.MORE))


def _tasks_by_service(client: Client, services: Sequence[Service]) -> dict[str, list[Task]]:
    by_service: dict[str, list[Task]] = defaultdict(list)
    if services:
        for task in client.list(Task):
            by_service[task.service_id].append(task)
    return by_service


@service.command("ps")
@click.argument("services", nargs=-1, required=True, metavar="SERVICE...", shell_complete=names("service"))
@list_options
@pass_session
def ps(session: Session, services: Sequence[str], options: ListOptions) -> None:
    """List the tasks of services, with the earlier ones of each slot.

    \b
    Filters: id, name, node, desired-state.
    Examples:
      mesh service ps api
      mesh service ps --filter desired-state=running --no-trunc api
    """
    client = session.client()
    ids = [client.get(Service, name).id for name in dict.fromkeys(services)]
    found = sorted_tasks(client.list(Task, {**options.filters, "service": ids}))
    nodes = node_names(client.list(Node))
    rows = task_rows(found, nodes, now_ms=session.wall_ms(), no_trunc=options.no_trunc, tree=True)
    print_list(options, Listing(PS_COLUMNS, rows, task_records(found, nodes), PS_MORE))


@service.command("inspect")
@click.argument("services", nargs=-1, required=True, metavar="SERVICE...", shell_complete=names("service"))
@click.option("--pretty", is_flag=True, help="For people.")
@inspect_option
@pass_session
def inspect(session: Session, services: Sequence[str], pretty: bool, format_: str) -> None:
    """Show everything about services.

    \b
    Examples:
      mesh service inspect --pretty api
      mesh service inspect --format '{{.Spec.Mode.Replicated.Replicas}}' api
    """
    client = session.client()
    found = [client.get(Service, name) for name in services]
    if pretty:
        networks = {network.id: network.spec.name for network in client.list(Network)}
        texts = [show.pretty_service(service, networks, session.wall_ms()) for service in found]
        click.echo("\n".join(texts), nl=False)
        return
    tasks = _tasks_by_service(client, found)
    print_objects(format_, show.service_records(found, tasks, down_nodes(client.list(Node))))


@service.command("scale")
@click.argument("scales", nargs=-1, required=True, metavar="SERVICE=REPLICAS...")
@wait_options
@pass_session
def scale(session: Session, scales: Sequence[str], wait_s: float | None) -> None:
    """Change how many tasks replicated services have.

    \b
    Examples:
      mesh service scale api=5
      mesh service scale --detach api=3 worker=10
    """
    client = session.client()
    changed: list[Service] = []
    for name, replicas in [_scale(text) for text in scales]:
        changed.append(change_service(client, name, functools.partial(scaled_service, replicas=replicas)))
        click.echo(f"{name} scaled to {replicas}")
    if wait_s is not None:
        for one in changed:
            wait_for_service(session, one.id, wait_s=wait_s, changed=one)


def _scale(text: str) -> tuple[str, int]:
    name, _, replicas = text.rpartition("=")
    if not name or not replicas.isascii() or not replicas.isdigit() or len(replicas) > 9:
        raise TextError(f'"{text}" must be SERVICE=REPLICAS, such as api=5')
    return name, int(replicas)


@service.command("rollback")
@click.argument("name", metavar="SERVICE", shell_complete=names("service"))
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@wait_options
@pass_session
def rollback(session: Session, name: str, quiet: bool, wait_s: float | None) -> None:
    """Go back to what a service was before its last update.

    \b
    Examples:
      mesh service rollback api
    """
    changed = session.client().rollback_service(name)
    click.echo(name)
    if wait_s is not None:
        wait_for_service(session, changed.id, wait_s=wait_s, quiet=quiet, changed=changed, rolling_back=True)


@service.command("rm")
@click.argument("services", nargs=-1, required=True, metavar="SERVICE...", shell_complete=names("service"))
@pass_session
def rm(session: Session, services: Sequence[str]) -> None:
    """Remove services, and stop their tasks.

    \b
    Examples:
      mesh service rm api worker
    """
    client = session.client()

    def remove(name: str) -> None:
        client.remove("service", name)
        click.echo(name)

    for_each(services, remove)
