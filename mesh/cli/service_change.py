"""`mesh service create` and `mesh service update`: their many options, and nothing else. Specs are made in `spec`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from control.model import Network, Service, ServiceSpec
from mesh.cli import container
from mesh.cli.complete import names
from mesh.cli.errors import ExitCode, Failure
from mesh.cli.options import DURATION, NAMED_PORT, NETWORK, PORTS, SIZE, Parsed
from mesh.cli.pin import pinned_service
from mesh.cli.session import Session, pass_session, retry_overtaken
from mesh.cli.spec import changed_service, new_service, parse_signal
from mesh.cli.text.pairs import parse_env_file
from mesh.cli.wait import wait_for_service, wait_options

if TYPE_CHECKING:
    from mesh.cli.client import Client

C = TypeVar("C", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]

ENV_FILE_MAX_BYTES = 1 << 20

_CPUS = click.FloatRange(min=0)
_RATIO = click.FloatRange(0, 1)
_COUNT = click.IntRange(min=0)
_PORT = click.IntRange(1, 65535)
_SIGNAL = Parsed("signal", parse_signal)


def _policy(name: str, actions: Sequence[str]) -> list[Decorator]:
    return [
        click.option(f"--{name}-parallelism", type=_COUNT, metavar="N", help="Tasks at once; 0 for all. [1]"),
        click.option(f"--{name}-delay", type=DURATION, help="Between them. [0s]"),
        click.option(f"--{name}-failure-action", type=click.Choice(actions), help="After too many failures. [pause]"),
        click.option(
            f"--{name}-max-failure-ratio", type=click.FloatRange(0, 1), metavar="RATIO", help="Tolerated failures. [0]"
        ),
        click.option(f"--{name}-monitor", type=DURATION, help="Watch each task this long for failure. [5s]"),
        click.option(f"--{name}-order", type=click.Choice(["stop-first", "start-first"]), help="[stop-first]"),
    ]


# What create and update have in common.
_SPEC: list[Decorator] = [
    click.option("--replicas", type=_COUNT, metavar="N", help="Number of tasks. [1]"),
    click.option("--image", help="Run containers of this image instead of processes."),
    click.option("--no-resolve-image", is_flag=True, help="Ask no registry which image is meant: each node does."),
    click.option("--workdir", "-w", metavar="DIR", help="Working directory."),
    click.option("--user", "-u", metavar="NAME|UID[:GROUP]", help="Run as."),
    click.option("--hostname", help="Host name of each task. [<service>.<slot>]"),
    click.option("--rootfs", metavar="DIR", help="Root file system on the node. [the node's own]"),
    *container.OPTIONS,
    click.option("--endpoint-mode", type=click.Choice(["vip", "dnsrr"]), help="One virtual address, or all. [vip]"),
    click.option(
        "--scheduler",
        type=click.Choice(["rr", "wrr", "lc", "wlc", "sh", "mh"]),
        help="How connections are spread, by the names of IPVS. [rr]",
    ),
    click.option("--affinity", type=DURATION, help="A client comes back to its task within this time; 0s for no. [0s]"),
    click.option("--idle-timeout", type=DURATION, help="Idle TCP connections are forgotten after this. [2h15m]"),
    click.option("--dns-ttl", type=_COUNT, metavar="SECONDS", help="How long its name may be cached. [5]"),
    click.option(
        "--dns-local-first/--no-dns-local-first", default=None, help="Name the tasks of the asking node first."
    ),
    click.option("--replicas-max-per-node", type=_COUNT, metavar="N", help="0 for no limit. [0]"),
    click.option("--limit-cpu", type=_CPUS, metavar="CPUS", help="At most so many CPUs."),
    click.option("--limit-memory", type=SIZE, help="At most so much memory, such as 64M."),
    click.option("--limit-pids", type=_COUNT, metavar="N", help="At most so many processes; 0 for no limit. [0]"),
    click.option("--reserve-cpu", type=_CPUS, metavar="CPUS", help="CPUs that must be free on the node."),
    click.option("--reserve-memory", type=SIZE, help="Memory that must be free on the node."),
    click.option(
        "--restart-condition", type=click.Choice(["any", "on-failure", "none"]), help="When to restart. [any]"
    ),
    click.option("--restart-delay", type=DURATION, help="Between end and restart. [5s]"),
    click.option("--restart-max-attempts", type=_COUNT, metavar="N", help="0 for no limit. [0]"),
    click.option("--restart-window", type=DURATION, help="In which attempts are counted. [since the update]"),
    click.option("--health-cmd", metavar="COMMAND", help="The task is well when this, run in it, ends with 0."),
    click.option("--health-tcp", type=_PORT, metavar="PORT", help="The task is well when it takes connections there."),
    click.option("--health-http", metavar=":PORT/PATH", help="The task is well when it answers 200 to 399 there."),
    click.option("--health-interval", type=DURATION, help="Between two checks. [10s]"),
    click.option("--health-timeout", type=DURATION, help="Of one check. [3s]"),
    click.option("--health-retries", type=_COUNT, metavar="N", help="Failures in a row until it has failed. [3]"),
    click.option("--health-start-period", type=DURATION, help="In which failures do not count. [0s]"),
    click.option("--no-healthcheck", is_flag=True, help="It is well as long as it runs."),
    click.option("--drain-period", type=DURATION, help="For open connections, before the stop signal. [1s]"),
    click.option("--stop-signal", type=_SIGNAL, help="[SIGTERM]"),
    click.option("--stop-grace-period", type=DURATION, help="Before SIGKILL. [10s]"),
    *_policy("update", ["pause", "continue", "rollback"]),
    *_policy("rollback", ["pause", "continue"]),
    click.option("-q", "--quiet", is_flag=True, help="Show no progress."),
]


def _many(*declarations: str, **rest: Any) -> Decorator:
    return click.option(*declarations, multiple=True, **rest)


_CREATE: list[Decorator] = [
    click.option("--name", required=True, help="Under which the service is found; a DNS label."),
    click.option("--mode", type=click.Choice(["replicated", "global"]), default="replicated", show_default=True),
    _many("--network", type=NETWORK, metavar="NET", help="Be on it: web, or name=web,alias=db.",
          shell_complete=names("network")),
    _many("--publish", "-p", type=PORTS, metavar="PORT",
          help="8080:80, 192.0.2.1:8080:80, or published=,target=,mode=."),
    _many("--port", type=NAMED_PORT, metavar="NAME=PORT", help="Found by SRV records: http=8080, or dns=53/udp."),
    _many("--env", "-e", metavar="NAME[=VALUE]", help="Environment variable."),
    _many("--env-file", type=click.Path(exists=True, dir_okay=False), help="A file of them."),
    _many("--label", "-l", metavar="KEY[=VALUE]", help="Label of the service."),
    _many("--constraint", metavar="EXPR", help="Where it may run, such as node.labels.zone==a."),
    _many("--placement-pref", metavar="EXPR", help="How to spread, such as spread=node.labels.zone."),
]  # fmt: skip

_UPDATE: list[Decorator] = [
    click.option("--args", metavar="COMMAND", help="Another command line, in one argument."),
    click.option("--force", is_flag=True, help="Replace every task, even if nothing changes."),
    _many("--network-add", type=NETWORK, metavar="NET", help="Join: web, or name=web,alias=db.",
          shell_complete=names("network")),
    _many("--network-rm", metavar="NET", shell_complete=names("network")),
    _many("--publish-add", type=PORTS, metavar="PORT"),
    _many("--publish-rm", metavar="TARGET-PORT"),
    _many("--port-add", type=NAMED_PORT, metavar="NAME=PORT"),
    _many("--port-rm", metavar="NAME"),
    _many("--env-add", metavar="NAME[=VALUE]"),
    _many("--env-rm", metavar="NAME"),
    _many("--label-add", metavar="KEY[=VALUE]"),
    _many("--label-rm", metavar="KEY"),
    _many("--constraint-add", metavar="EXPR"),
    _many("--constraint-rm", metavar="EXPR"),
    _many("--placement-pref-add", metavar="EXPR"),
    _many("--placement-pref-rm", metavar="EXPR"),
]  # fmt: skip


def _options(options: Sequence[Decorator]) -> Callable[[C], C]:
    def add(command: C) -> C:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.command("create", context_settings={"allow_interspersed_args": False})
@_options([*_CREATE, *_SPEC])
@wait_options
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND [ARG...]")
@pass_session
def create(session: Session, /, command: Sequence[str], quiet: bool, wait_s: float | None, **flags: Any) -> None:
    """Create a service: a command, run as tasks on the nodes, found under one name.

    \b
    Examples:
      mesh service create --name api --replicas 4 --network web --publish 8080:80 -- python3 -m http.server 80
      mesh service create --name agent --mode global -e LEVEL=debug -- /usr/local/bin/agent
      mesh service create --name db --network name=web,alias=store --constraint node.labels.disk==ssd \\
          --limit-memory 512M --restart-condition on-failure -- /opt/db/run
      mesh service create --name site --image nginx:1.27 --network web --publish 80:80 --mount /srv/site:/usr/share:ro
    """
    flags["env_files"] = _env_files(flags.pop("env_file"))
    spec = new_service(flags, command[1:] if command[:1] == ("--",) else command, os.environ)
    created = session.client().create_service(_resolved(session, spec, flags))
    for warning in created.warnings:
        session.warn(warning)
    click.echo(created.id)
    if wait_s is not None:
        wait_for_service(session, created.id, wait_s=wait_s, quiet=quiet)


def _env_files(paths: Sequence[str]) -> dict[str, str]:
    env: dict[str, str] = {}
    for path in paths:
        try:
            with Path(path).open("rb") as file:
                data = file.read(ENV_FILE_MAX_BYTES + 1)
            if len(data) > ENV_FILE_MAX_BYTES:
                raise Failure(f"{path} is larger than {ENV_FILE_MAX_BYTES} bytes", ExitCode.USAGE)
            env |= parse_env_file(path, data.decode(), os.environ)
        except OSError as error:
            raise Failure(f"cannot read {path}: {error.strerror}", ExitCode.USAGE) from error
        except UnicodeDecodeError as error:
            raise Failure(f"{path} is not UTF-8 text", ExitCode.USAGE) from error
    return env


@click.command("update")
@click.argument("name", metavar="SERVICE", shell_complete=names("service"))
@_options([*_UPDATE, *_SPEC])
@wait_options
@pass_session
def update(session: Session, /, name: str, quiet: bool, wait_s: float | None, **flags: Any) -> None:
    """Change a service. Tasks are replaced as its update policy says.

    \b
    Examples:
      mesh service update --env-add LEVEL=info --update-parallelism 2 --update-order start-first api
      mesh service update --publish-add 8443:443 --constraint-rm node.labels.zone==a api
      mesh service update --force api
    """
    client = session.client()

    def decide(spec: ServiceSpec) -> ServiceSpec:
        made = changed_service(spec, flags, os.environ, lambda n: client.get(Network, n).id)
        return _resolved(session, made, flags) if flags.get("image") else made

    changed = change_service(client, name, decide)
    click.echo(name)
    if wait_s is not None:
        wait_for_service(session, changed.id, wait_s=wait_s, quiet=quiet, changed=changed)


def _resolved(session: Session, spec: ServiceSpec, flags: Mapping[str, Any]) -> ServiceSpec:
    if flags.get("no_resolve_image"):
        return spec
    spec, warning = pinned_service(spec)
    if warning:
        session.warn(warning)
    return spec


def change_service(client: Client, name: str, decide: Callable[[ServiceSpec], ServiceSpec]) -> Service:
    """Replace a service's spec by what `decide` makes of it; the service afterwards. Raises Failure and TextError.

    Flags say what to change, not what to end with: a change that was overtaken is made again on what is now there.
    """

    def step() -> Service:
        seen = client.get(Service, name)
        return client.update_service(seen.id, seen.meta.version, decide(seen.spec))

    return retry_overtaken(step)
