"""`mesh init`, `join`, `leave` and `status`: this machine and its cluster."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

import click
import msgspec

from control.model import Cluster, ClusterSpec, Node, Service, Task
from mesh.cli.ca import own_root
from mesh.cli.errors import ExitCode, Failure
from mesh.cli.lock import explain_key
from mesh.cli.node import warn_of_managers
from mesh.cli.options import DURATION
from mesh.cli.output import print_objects
from mesh.cli.session import Session, pass_session
from mesh.cli.show.names import down_nodes
from mesh.cli.show.status import Overview, overview_record, pretty_overview, problems
from mesh.cli.token import join_command

if TYPE_CHECKING:
    from control.rpc import control_pb2 as pb
    from mesh.cli.client import Client

DEFAULT_PORT = 7377
# A token is 82 characters; whatever is longer is some other file.
TOKEN_MAX = 1024

_AVAILABILITY = click.Choice(["active", "pause", "drain"])


@click.command("init")
@click.option("--advertise-addr", metavar="ADDRESS|DEVICE[:PORT]", default="", help="Where others reach this manager.")
@click.option("--data-path-addr", metavar="ADDRESS|DEVICE", default="", help="Its end of tunnels. [as advertised]")
@click.option("--data-path-port", type=click.IntRange(1024, 49151), help="UDP port of VXLAN. [4789]")
@click.option("--wireguard-port", type=click.IntRange(1024, 49150), help="It and the next: encrypted networks. [7947]")
@click.option("--default-addr-pool", metavar="PREFIX", multiple=True, help="Subnets are taken from it. [10.128.0.0/9]")
@click.option("--default-addr-pool-mask-length", type=click.IntRange(8, 29), help="How large they are. [20]")
@click.option("--address-rest", type=DURATION, help="How long a freed address is not used again. [1m]")
@click.option("--dispatcher-heartbeat", type=DURATION, help="A node is down after three missed ones. [5s]")
@click.option("--task-history-limit", type=click.IntRange(min=0), help="Ended tasks kept per slot. [5]")
@click.option("--name", help="Of the cluster. [default]")
@click.option("--cert-expiry", type=DURATION, help="How long nodes' certificates last. [2160h]")
@click.option("--ca-cert", type=click.File("rb"), metavar="FILE", help="A root of your own, PEM. Default: a new one.")
@click.option("--ca-key", type=click.File("rb"), metavar="FILE", help="Its key, PEM, without a passphrase.")
@click.option("--external-ca", metavar="URL", default="", help="Certificates are signed there, under --ca-cert.")
@click.option("--autolock", is_flag=True, help="Managers that start need a key, which is printed.")
@click.option("--availability", type=_AVAILABILITY, default="active", show_default=True)
@click.option("-q", "--quiet", is_flag=True, help="Only the node's id.")
@pass_session
def init(
    session: Session,
    advertise_addr: str,
    data_path_addr: str,
    data_path_port: int | None,
    wireguard_port: int | None,
    default_addr_pool: Sequence[str],
    default_addr_pool_mask_length: int | None,
    address_rest: float | None,
    dispatcher_heartbeat: float | None,
    task_history_limit: int | None,
    name: str | None,
    cert_expiry: float | None,
    ca_cert: BinaryIO | None,
    ca_key: BinaryIO | None,
    external_ca: str,
    autolock: bool,
    availability: str,
    quiet: bool,
) -> None:
    """Start a cluster with this machine as its first manager.

    \b
    Examples:
      mesh init
      mesh init --advertise-addr 10.0.0.1
      mesh init --ca-cert root.pem --ca-key root.key --autolock
      mesh init --ca-cert root.pem --external-ca https://ca.example.com:8888/api/v1/cfssl/sign
      mesh init --advertise-addr eth1 --dispatcher-heartbeat 1s --default-addr-pool 10.64.0.0/12
    """
    client = session.client()  # before the generated code, so that a missing daemon is told first
    from control.rpc import control_pb2 as pb

    given = {
        "vxlan_port": data_path_port,
        "wireguard_port": wireguard_port,
        "address_pools": tuple(default_addr_pool) or None,
        "subnet_prefix_length": default_addr_pool_mask_length,
        "address_rest_s": address_rest,
        "heartbeat_period_s": dispatcher_heartbeat,
        "task_history_limit": task_history_limit,
        "name": name,
        "autolock": autolock or None,
        "certificate_life_s": cert_expiry,
    }
    certificate, key = own_root(ca_cert, ca_key, external=external_ca)
    spec = msgspec.structs.replace(ClusterSpec(), **{key: value for key, value in given.items() if value is not None})
    reply = client.init(
        pb.InitRequest(
            advertise_address=advertise_addr,
            data_address=data_path_addr,
            spec=msgspec.msgpack.encode(spec),
            availability=availability,
            ca_certificate=certificate,
            ca_key=key,
            external_ca=external_ca,
        )
    )
    _explain(reply, quiet=quiet)


def _explain(reply: pb.InitReply, *, quiet: bool) -> None:
    """What was made, and what to do next."""
    if quiet:
        click.echo(reply.node_id)
        return
    click.echo(f"Cluster initialized: this node ({reply.node_id}) is now a manager.\n")
    click.echo("To add a worker to this cluster, run the following command on it:\n")
    click.echo(f"    {join_command(reply.worker_token, reply.manager_address)}\n")
    click.echo('To add a manager, run "mesh token show manager" and follow the instructions.\n')
    if reply.unlock_key:
        click.echo(explain_key(reply.unlock_key))


@click.command("join")
@click.argument("managers", nargs=-1, required=True, metavar="MANAGER[:PORT]...")
@click.option(
    "--token",
    "token_text",
    metavar="TOKEN",
    envvar="MESH_TOKEN",
    required=True,
    help='Of "mesh token show"; "-" reads it from standard input. [MESH_TOKEN]',
)
@click.option("--advertise-addr", metavar="ADDRESS|DEVICE[:PORT]", default="", help="Of a manager: its API.")
@click.option("--data-path-addr", metavar="ADDRESS|DEVICE", default="", help="This node's end of tunnels.")
@click.option("--availability", type=_AVAILABILITY, default="active", show_default=True)
@pass_session
def join(
    session: Session,
    managers: Sequence[str],
    token_text: str,
    advertise_addr: str,
    data_path_addr: str,
    availability: str,
) -> None:
    """Make this machine a node of a cluster. The token says whether it becomes a worker or a manager.

    \b
    Examples:
      mesh join --token MTKN-1-... 10.0.0.1:7377
      mesh join --token - 10.0.0.1 10.0.0.2 < token
    """
    if token_text == "-":
        token_text = sys.stdin.read(TOKEN_MAX)
    client = session.client()
    from control.rpc import control_pb2 as pb

    client.join(
        pb.LocalJoinRequest(
            token=token_text.strip(),
            managers=[_with_port(manager) for manager in managers],
            data_address=data_path_addr,
            availability=availability,
            advertise_address=advertise_addr,
        )
    )
    role = client.info().role or "worker"
    click.echo(f"This node joined a cluster as a {role}.")
    if role == "manager":
        warn_of_managers(session)


def _with_port(manager: str) -> str:
    """HOST, HOST:PORT, or an IPv6 address in brackets, always with a port."""
    _, bracket, rest = manager.rpartition("]")
    if ":" in rest:
        return manager
    return f"{manager}:{DEFAULT_PORT}" if bracket or ":" not in manager else manager


@click.command("leave")
@click.option("-f", "--force", is_flag=True, help="Also a manager, and even if that ends the cluster.")
@pass_session
def leave(session: Session, force: bool) -> None:
    """Take this machine out of its cluster. Its tasks are stopped, its networks removed.

    \b
    Examples:
      mesh leave
      mesh leave --force
    """
    session.client().leave(force=force)
    click.echo("Node left the cluster.")


@click.command("status")
@click.option(
    "-f",
    "--format",
    "format_",
    metavar="FORMAT",
    default="text",
    help="text, json, jsonl, or a template such as '{{.State}}'.",
)
@pass_session
def status(session: Session, format_: str) -> None:
    """How this machine and its cluster are. The exit code is 7 when something is wrong.

    \b
    Examples:
      mesh status
      mesh status --format json
      mesh status > /dev/null || echo "have a look"
    """
    overview = _look(session.client())
    if format_ == "text":
        click.echo(pretty_overview(overview), nl=False)
    else:
        shown = overview_record(overview)
        print_objects("jsonl" if format_ == "json" else format_, [shown])
    if problems(overview):
        raise click.exceptions.Exit(ExitCode.DEGRADED)


def _look(client: Client) -> Overview:
    """Of the cluster as much as a manager says; that none answers is part of the result."""
    reply = client.remote_info() if client.context is not None else client.info()
    about = {field.name: getattr(reply, field.name) for field in reply.DESCRIPTOR.fields}
    about["managers"] = list(reply.managers)
    if reply.state == "idle":
        return Overview(about)
    try:
        cluster = client.get(Cluster, "")
        nodes, services, tasks = client.list(Node), client.list(Service), client.list(Task)
    except Failure as failure:
        if failure.code is ExitCode.REFUSED:
            return Overview(about)  # a worker may not ask for more
        return Overview(about, unreachable=str(failure))
    return Overview(about, cluster.spec.name, tuple(nodes), tuple(services), tuple(tasks), down_nodes(nodes))
