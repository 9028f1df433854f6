"""`mesh cluster`: the settings of the whole cluster."""

from __future__ import annotations

from collections.abc import Sequence

import click
from msgspec.structs import replace

from control.model import Cluster
from mesh.cli.lazy import AliasedGroup
from mesh.cli.lock import explain_key
from mesh.cli.options import DURATION
from mesh.cli.output import inspect_option, print_objects
from mesh.cli.session import Session, pass_session, retry_overtaken
from mesh.cli.show.plain import record
from mesh.cli.text.template import Record

# The record holds secrets besides; `mesh token show` is the way to see the tokens.
_SHOWN = ("id", "meta", "spec", "next_node_number")


@click.group("cluster", cls=AliasedGroup)
def cluster_settings() -> None:
    """Settings of the whole cluster."""


@cluster_settings.command("inspect")
@inspect_option
@pass_session
def inspect(session: Session, format_: str) -> None:
    """Show the settings. Secrets are left out.

    \b
    Examples:
      mesh cluster inspect
      mesh cluster inspect --format '{{.Spec.HeartbeatPeriodS}}'
    """
    shown = record(session.client().get(Cluster, ""))
    print_objects(format_, [Record({key: shown[key] for key in _SHOWN})])


@cluster_settings.command("update")
@click.option("--name", help="Of the cluster.")
@click.option("--default-addr-pool", metavar="PREFIX", multiple=True, help="New subnets are taken from it.")
@click.option("--default-addr-pool-mask-length", type=click.IntRange(8, 29), help="How large they are.")
@click.option("--address-rest", type=DURATION, help="How long a freed address is not used again.")
@click.option("--dispatcher-heartbeat", type=DURATION, help="A node is down after three missed ones.")
@click.option("--task-history-limit", type=click.IntRange(min=0), help="Ended tasks kept per slot.")
@click.option("--cert-expiry", type=DURATION, help="How long nodes' certificates last; from the next renewal on.")
@click.option("--autolock", type=bool, is_flag=False, flag_value="true", help="Managers that start need a key.")
@pass_session
def update(
    session: Session,
    name: str | None,
    default_addr_pool: Sequence[str],
    default_addr_pool_mask_length: int | None,
    address_rest: float | None,
    dispatcher_heartbeat: float | None,
    task_history_limit: int | None,
    cert_expiry: float | None,
    autolock: bool | None,
) -> None:
    """Change settings. What is not named stays; networks that are there keep their subnets.

    \b
    Examples:
      mesh cluster update --dispatcher-heartbeat 2s
      mesh cluster update --cert-expiry 720h
      mesh cluster update --autolock
      mesh cluster update --autolock=false
      mesh cluster update --default-addr-pool 10.64.0.0/12 --default-addr-pool-mask-length 24
    """
    given = {
        "name": name,
        "address_pools": tuple(default_addr_pool) or None,
        "subnet_prefix_length": default_addr_pool_mask_length,
        "address_rest_s": address_rest,
        "heartbeat_period_s": dispatcher_heartbeat,
        "task_history_limit": task_history_limit,
        "certificate_life_s": cert_expiry,
        "autolock": autolock,
    }
    changed = {key: value for key, value in given.items() if value is not None}
    if not changed:
        raise click.UsageError("nothing to change: see the options")
    client = session.client()

    locked_before = bool(autolock) and client.get(Cluster, "").spec.autolock

    def step() -> Cluster:
        seen = client.get(Cluster, "")
        spec = replace(seen.spec, **changed)
        return client.update_cluster(seen.id, seen.meta.version, spec) if spec != seen.spec else seen

    click.echo(retry_overtaken(step).spec.name)
    if autolock and not locked_before:
        click.echo(explain_key(client.unlock_key()))
