"""`mesh`: the root command, and how each run of it ends."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
from click.core import ParameterSource

import mesh
from mesh.cli.contexts import DEFAULT
from mesh.cli.errors import ExitCode, Failure
from mesh.cli.lazy import Entry, LazyGroup
from mesh.cli.session import DEFAULT_SOCKET, Session, styled
from mesh.cli.text import TextError

CLUSTER, OBJECTS, TOOLS = "Cluster", "Objects", "Tools"

ENTRIES = {
    "init": Entry("mesh.cli.cluster:init", "Start a cluster with this machine as its first manager", CLUSTER),
    "join": Entry("mesh.cli.cluster:join", "Make this machine a node of a cluster", CLUSTER),
    "leave": Entry("mesh.cli.cluster:leave", "Take this machine out of its cluster", CLUSTER),
    "status": Entry("mesh.cli.cluster:status", "How this machine and its cluster are", CLUSTER),
    "cluster": Entry("mesh.cli.settings:cluster_settings", "Settings of the whole cluster", CLUSTER),
    "token": Entry("mesh.cli.token:token", "Join tokens", CLUSTER),
    "join-token": Entry("mesh.cli.token:join_token", "Show or rotate a join token", CLUSTER),
    "unlock-key": Entry("mesh.cli.lock:unlock_key", "Show or rotate the key that managers are unlocked with", CLUSTER),
    "unlock": Entry("mesh.cli.lock:unlock", "Unlock this manager after a restart", CLUSTER),
    "ca": Entry("mesh.cli.ca:ca", "The certificate authority of the cluster", CLUSTER),
    "quorum": Entry("mesh.cli.quorum:quorum", "The managers, and whether they can agree", CLUSTER),
    "user": Entry("mesh.cli.user:user", "Certificates for people and programs elsewhere", CLUSTER),
    "context": Entry("mesh.cli.context:context", "Clusters elsewhere that this machine calls", CLUSTER),
    "backup": Entry("mesh.cli.backup:backup", "Write the state of the cluster to a file", CLUSTER),
    "node": Entry("mesh.cli.node:node", "Machines of the cluster", OBJECTS),
    "network": Entry("mesh.cli.network:network", "Networks that reach over all nodes", OBJECTS),
    "service": Entry("mesh.cli.service:service", "Services: what should run, and under which name", OBJECTS),
    "task": Entry("mesh.cli.task:task", "Tasks: the running instances of services", OBJECTS),
    "attachment": Entry("mesh.cli.attach:attachment", "Containers on networks that others have started", OBJECTS),
    "attach": Entry("mesh.cli.attach:attach", "Put a container of this machine on a network", OBJECTS),
    "detach": Entry("mesh.cli.attach:detach", "Take it off again", OBJECTS),
    "events": Entry("mesh.cli.events:events", "Follow what changes in the cluster", TOOLS),
    "trace": Entry("mesh.cli.trace:trace", "Where a connection goes, and where it would be lost", TOOLS),
    "doctor": Entry("mesh.cli.doctor:doctor", "What keeps this machine from working, and what helps", TOOLS),
    "dns": Entry("mesh.cli.dns:dns", "The name server", TOOLS),
    "gossip": Entry("mesh.cli.gossip:gossip", "Members, events and queries, as Serf has them", TOOLS),
    "lab": Entry("mesh.cli.lab:lab", "Several machines on this one, for trying things out", TOOLS),
    "completion": Entry("mesh.cli.completion:completion", "Completion for bash, zsh or fish", TOOLS),
}


@click.command(
    cls=LazyGroup,
    entries=ENTRIES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog='"mesh COMMAND --help" shows examples. Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 conflict, '
    "5 unavailable (try again), 6 refused, 7 degraded, 124 waited too long, 130 interrupted.",
)
@click.option(
    "--socket",
    metavar="PATH",
    envvar="MESH_SOCKET",
    default=DEFAULT_SOCKET,
    help=f"Where meshd listens. [MESH_SOCKET; {DEFAULT_SOCKET}]",
)
@click.option(
    "--context",
    "context",
    metavar="NAME",
    envvar="MESH_CONTEXT",
    default="",
    help='Of a cluster elsewhere, see "mesh context"; "default" is this machine. [MESH_CONTEXT; mesh context use]',
)
@click.version_option(mesh.__version__, prog_name="mesh", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, socket: str, context: str) -> None:
    """A service network for a handful to a few thousand Linux machines."""
    if ctx.obj is None:
        ctx.obj = Session()
    assert isinstance(ctx.obj, Session)
    ctx.obj.socket = socket
    ctx.obj.context = _place(ctx, context, ctx.obj)
    ctx.call_on_close(ctx.obj.close)


def _place(ctx: click.Context, context: str, session: Session) -> str:
    """The context to call, "" for the socket: what is typed goes before the environment, and that before `use`."""
    typed = ctx.get_parameter_source("context") is ParameterSource.COMMANDLINE
    socket = ctx.get_parameter_source("socket")
    if not typed and socket is ParameterSource.COMMANDLINE:
        return ""
    if not context and socket is ParameterSource.ENVIRONMENT:
        return ""
    chosen = context or session.contexts().current()
    return "" if chosen == DEFAULT else chosen


def run(arguments: Sequence[str], session: Session | None = None) -> int:
    """Run one command line; the exit code. Tests pass a session with their own clocks."""
    try:
        result = cli.main(args=list(arguments), prog_name="mesh", standalone_mode=False, obj=session)
    except Failure as failure:
        return _fail(str(failure), failure.code)
    except TextError as error:
        return _fail(str(error), ExitCode.USAGE)
    except click.UsageError as error:
        hint = f'\nsee "{error.ctx.command_path} --help"' if error.ctx is not None else ""
        return _fail(error.format_message().rstrip(".") + hint, ExitCode.USAGE)
    except click.ClickException as error:
        return _fail(error.format_message(), ExitCode.FAILED)
    except (click.exceptions.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    return int(result) if isinstance(result, int) else ExitCode.OK


def _fail(sentences: str, code: ExitCode) -> int:
    click.echo(f"{styled('error:', 'red')} {sentences}", err=True)
    return code


def main() -> None:
    """Entry point of the `mesh` command."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
