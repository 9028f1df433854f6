"""`mesh gossip`: commands to a gossip agent, ours or Serf's, over Serf's RPC."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from mesh.cli.errors import ExitCode, Failure
from mesh.cli.lazy import AliasedGroup
from mesh.cli.options import DURATION
from mesh.cli.session import Session, pass_session

if TYPE_CHECKING:
    from gossip.serf_client import KeyReport, SerfClient

P = ParamSpec("P")
R = TypeVar("R")

# meshd serves it there; the agent that runs alone, and Serf's, at 127.0.0.1:7373.
DEFAULT_RPC = "/run/meshd/serf.sock"


@click.group(cls=AliasedGroup)
def gossip() -> None:
    """Membership, events and queries among nodes, on the wire and the RPC of Serf."""


# The agent reads its flags itself: they are Go's (-node NAME), which click would take for letters.
@gossip.command(
    "agent",
    context_settings={
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
        "help_option_names": ["--help"],
    },
)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
@pass_session
def agent(session: Session, flags: Sequence[str]) -> None:
    """Run a gossip agent until it leaves, with the flags of "serf agent"; "mesh gossip agent -h" lists them.

    \b
    Examples:
      mesh gossip agent -node n1 -bind 10.0.0.1
      mesh gossip agent -node n2 -bind 10.0.0.2 -join 10.0.0.1
    """
    # In the place of this process: the agent lives long, and has no use for what a command line takes.
    session.execute(sys.executable, [sys.executable, "-m", "gossip.agent_process", *flags], dict(os.environ))


def to_agent(command: Callable[P, R]) -> Callable[..., R]:
    """Adds the options that say which agent, and gives the command a connected client as `client`."""

    @click.option(
        "--rpc-addr",
        metavar="ADDRESS",
        envvar="SERF_RPC_ADDR",
        default=DEFAULT_RPC,
        help=f"HOST:PORT or socket path of the agent's RPC. [SERF_RPC_ADDR; {DEFAULT_RPC}]",
    )
    @click.option("--rpc-auth", metavar="KEY", envvar="SERF_RPC_AUTH", default="", help="[SERF_RPC_AUTH]")
    @wraps(command)
    def with_client(*args: Any, rpc_addr: str, rpc_auth: str, **rest: Any) -> R:
        with _connected(rpc_addr, rpc_auth) as client:
            return command(*args, client=client, **rest)  # type: ignore[arg-type]

    return with_client


@contextmanager
def _connected(address: str, auth_key: str) -> Iterator[SerfClient]:
    from gossip.serf_client import SerfClient, SerfConnectionError, SerfError

    try:
        with SerfClient(address, auth_key) as client:
            yield client
    except SerfConnectionError as error:
        raise Failure(str(error), ExitCode.UNAVAILABLE) from error
    except SerfError as error:
        raise Failure(str(error)) from error


def _pairs(written: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for item in written:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise click.UsageError(f'"{item}" must be NAME=VALUE')
        pairs[name] = value
    return pairs


def _shown(payload: bytes) -> str:
    return payload.decode("utf-8", "backslashreplace")


@gossip.command("members")
@click.option(
    "--status", default="", metavar="EXPRESSION", help="Only members of this status, such as alive or failed."
)
@click.option("--name", default="", metavar="EXPRESSION", help="Only members whose whole name matches.")
@click.option("--tag", "tags", multiple=True, metavar="NAME=EXPRESSION", help="Only members whose tag matches wholly.")
@click.option("--format", "format_", type=click.Choice(("table", "json")), default="table", show_default=True)
@to_agent
def members(client: SerfClient, status: str, name: str, tags: Sequence[str], format_: str) -> None:
    """Who is there.

    \b
    Examples:
      mesh gossip members
      mesh gossip members --status failed --format json
    """
    from mesh.cli.text.table import printable, table

    found = client.members_filtered(_pairs(tags), status, name)
    found.sort(key=lambda member: member.name)
    if format_ == "json":
        fields = ("name", "address", "port", "status", "tags", "protocol")
        click.echo(json.dumps([{f: getattr(member, f) for f in fields} for member in found], indent=2))
        return
    rows = [
        [
            printable(member.name),
            f"[{member.address}]:{member.port}" if ":" in member.address else f"{member.address}:{member.port}",
            member.status,
            printable(",".join(f"{key}={value}" for key, value in sorted(member.tags.items()))),
        ]
        for member in found
    ]
    click.echo(table(["NAME", "ADDRESS", "STATUS", "TAGS"], rows), nl=False)


@gossip.command("event")
@click.argument("name")
@click.argument("payload", default="")
@click.option("--coalesce/--no-coalesce", default=True, help="Whether handlers may take several of a name as one.")
@to_agent
def event(client: SerfClient, name: str, payload: str, coalesce: bool) -> None:
    """Send an event to everybody; name and payload have 512 bytes together.

    \b
    Examples:
      mesh gossip event deploy v2
    """
    client.event(name, payload.encode("utf-8", "surrogateescape"), coalesce)


@gossip.command("query")
@click.argument("name")
@click.argument("payload", default="")
@click.option("--node", "nodes", multiple=True, metavar="NAME", help="Ask only this node; repeatable.")
@click.option("--tag", "tags", multiple=True, metavar="NAME=EXPRESSION", help="Ask only nodes whose tag matches.")
@click.option("--ack/--no-ack", default=True, help="Whether nodes say that the query has come.")
@click.option("--relay-factor", type=click.IntRange(0, 255), default=0, help="Copies of answers by way of others.")
@click.option("--timeout", type=DURATION, default="0s", help="How long to wait; 0s: as the cluster needs.")
@click.option("--format", "format_", type=click.Choice(("text", "json")), default="text", show_default=True)
@to_agent
def query(
    client: SerfClient,
    name: str,
    payload: str,
    nodes: Sequence[str],
    tags: Sequence[str],
    ack: bool,
    relay_factor: int,
    timeout: float,
    format_: str,
) -> None:
    """Ask everybody, and show who acknowledges and answers.

    \b
    Examples:
      mesh gossip query load
      mesh gossip query --tag role=web deploy v2
    """
    data = payload.encode("utf-8", "surrogateescape")
    answers = client.query(
        name, data, nodes=nodes, tags=_pairs(tags), ack=ack, relay_factor=relay_factor, timeout_s=timeout
    )
    counts = {"ack": 0, "response": 0}
    for kind, node, answer in answers:
        counts[kind] = counts.get(kind, 0) + 1
        if format_ == "json":
            click.echo(json.dumps({"type": kind, "node": node, "payload": _shown(answer)}))
        else:
            click.echo(f"{kind} from {node}" + (f": {_shown(answer)}" if kind == "response" else ""))
    if format_ == "text":
        click.echo(f"{counts['ack']} acknowledged, {counts['response']} answered", err=True)


@gossip.group("keys", cls=AliasedGroup)
def keys() -> None:
    """Keys that packets are encrypted with."""


@keys.command("ls")
@to_agent
def keys_ls(client: SerfClient) -> None:
    """Keys, and how many nodes have each.

    \b
    Examples:
      mesh gossip keys ls
    """
    report = client.list_keys()
    for key, count in sorted(report.keys.items()):
        click.echo(f"{key}  {count}/{report.nodes}")
    _check(report)


@keys.command("install")
@click.argument("key")
@to_agent
def keys_install(client: SerfClient, key: str) -> None:
    """Make a key known to all nodes.

    \b
    Examples:
      mesh gossip keys install $(mesh gossip keys generate)
    """
    _check(client.install_key(key))


@keys.command("use")
@click.argument("key")
@to_agent
def keys_use(client: SerfClient, key: str) -> None:
    """Encrypt with a key that all nodes know.

    \b
    Examples:
      mesh gossip keys use OcnoQJmgtkTsT1hA+BCXvw==
    """
    _check(client.use_key(key))


@keys.command("rm")
@click.argument("key")
@to_agent
def keys_rm(client: SerfClient, key: str) -> None:
    """Make all nodes forget a key.

    \b
    Examples:
      mesh gossip keys rm OcnoQJmgtkTsT1hA+BCXvw==
    """
    _check(client.remove_key(key))


@keys.command("generate")
def keys_generate() -> None:
    """A new key of 32 bytes, in base64.

    \b
    Examples:
      mesh gossip keys generate
    """
    import base64
    import secrets

    click.echo(base64.b64encode(secrets.token_bytes(32)).decode())


def _check(report: KeyReport) -> None:
    for node, message in sorted(report.messages.items()):
        click.echo(f"{node}: {message}", err=True)
    if report.error:
        raise Failure(report.error)


@gossip.command("rtt")
@click.argument("first")
@click.argument("second", default="")
@to_agent
def rtt(client: SerfClient, first: str, second: str) -> None:
    """Estimated round trip between two nodes; with one name, from the agent to it.

    \b
    Examples:
      mesh gossip rtt n1
      mesh gossip rtt n1 n2
    """
    from gossip.coordinates import Coordinate, distance_s

    second = second or client.stats()["agent"]["name"]
    places: list[Coordinate] = []
    for node in (first, second):
        found = client.get_coordinate(node)
        if found is None:
            raise Failure(f'there is no coordinate of node "{node}" yet', ExitCode.NOT_FOUND)
        place = Coordinate(tuple(found["Vec"]), found["Error"], found["Adjustment"], found["Height"])
        places.append(place)
    if len(places[0].vec) != len(places[1].vec):
        raise Failure(f"the coordinates of {first} and {second} cannot be compared")
    click.echo(f"Estimated {first} <-> {second} rtt: {distance_s(*places) * 1000:.3f} ms")


@gossip.command("stats")
@click.option("--format", "format_", type=click.Choice(("text", "json")), default="text", show_default=True)
@to_agent
def stats(client: SerfClient, format_: str) -> None:
    """Numbers of the agent.

    \b
    Examples:
      mesh gossip stats
      mesh gossip stats --format json
    """
    blocks: Mapping[str, Mapping[str, str]] = client.stats()
    if format_ == "json":
        click.echo(json.dumps(blocks, indent=2))
        return
    for block, lines in sorted(blocks.items()):
        click.echo(f"{block}:")
        for name, value in sorted(lines.items()):
            click.echo(f"  {name} = {value}")


@gossip.command("monitor")
@click.option("--log-level", default="", metavar="LEVEL", help="Show the log from this level on, instead of events.")
@click.option("--event", "types", default="*", metavar="TYPES", help="Such as member-failed,user:deploy. [*]")
@click.option("--format", "format_", type=click.Choice(("text", "json")), default="text", show_default=True)
@to_agent
def monitor(client: SerfClient, log_level: str, types: str, format_: str) -> None:
    """Follow events, or the log, until Ctrl-C. Suspicion is shown with --event member-suspect,member-refute.

    \b
    Examples:
      mesh gossip monitor --event member-failed,user:deploy
      mesh gossip monitor --log-level debug
    """
    if log_level:
        lines = client.monitor(log_level)
        client.set_timeout(None)
        for line in lines:
            click.echo(line)
        return
    records = client.stream(types)
    client.set_timeout(None)
    for record in records:
        shown = _event_fields(record)
        if format_ == "json":
            click.echo(json.dumps(shown))
        else:
            rest = " ".join(f"{key}={value}" for key, value in shown.items() if key != "event")
            click.echo(f"{time.strftime('%H:%M:%S')} {shown['event']} {rest}".rstrip())


def _event_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(record.get("Event"))
    if kind in ("user", "query"):
        payload = record.get("Payload") or b""
        return {
            "event": kind,
            "name": record.get("Name"),
            "payload": _shown(payload if isinstance(payload, bytes) else str(payload).encode()),
            "ltime": record.get("LTime"),
        }
    names = [str(member.get("Name")) for member in record.get("Members") or ()]
    return {"event": kind, "members": ",".join(names)}
