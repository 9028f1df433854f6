"""`mesh task stats`: what tasks of this machine use, as their control groups count it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import click

from control.model import Task
from mesh.cli.complete import names
from mesh.cli.errors import Failure
from mesh.cli.output import Listing, ListOptions, list_options, print_list
from mesh.cli.session import Session, pass_session
from mesh.cli.show.names import task_name
from mesh.cli.text.size import format_size
from mesh.cli.text.template import Record
from mesh.executor.usage import read_usage

# CPU time is counted for so long.
INTERVAL_S = 1.0
COLUMNS = {"Name": "NAME", "Cpu": "CPU", "Memory": "MEMORY", "Limit": "LIMIT", "Pids": "PIDS"}


@click.command("stats")
@click.argument("tasks", nargs=-1, metavar="[TASK...]", shell_complete=names("task"))
@list_options
@pass_session
def stats(session: Session, tasks: Sequence[str], options: ListOptions) -> None:
    """Show what tasks of this machine use: CPU of one core, memory without the page cache, processes.

    \b
    Examples:
      mesh task stats
      mesh task stats api.1 --format '{{.Name}} {{.Memory}}'
    """
    processes = _processes(session, tasks, options)
    before = {name: read_usage(pid) for name, pid in processes.items()}
    time.sleep(INTERVAL_S)
    rows: list[Record] = []
    objects: list[object] = []
    for name, pid in processes.items():
        first, now = before[name], read_usage(pid)
        if first is None or now is None:
            continue  # it has ended meanwhile
        share = max(0.0, now.cpu_s - first.cpu_s) / INTERVAL_S
        limit = format_size(now.memory_limit) if now.memory_limit else "-"
        used = format_size(now.memory_bytes)
        shown = {"Name": name, "Cpu": f"{share:.1%}", "Memory": used, "Limit": limit, "Pids": str(now.pids)}
        rows.append(Record(shown))
        counts = {"MemoryBytes": now.memory_bytes, "LimitBytes": now.memory_limit, "Pids": now.pids}
        objects.append({"Name": name, "Cpu": round(share, 4), **counts})
    print_list(options, Listing(COLUMNS, rows, objects, {}))


def _processes(session: Session, tasks: Sequence[str], options: ListOptions) -> dict[str, int]:
    """The first process of each task that is asked for, by its name; without any, of all that run here."""
    client = session.client()
    if tasks:
        return {name: client.task_process(name)[1] for name in tasks}
    here = client.node_id
    running = client.list(Task, {**options.filters, "desired-state": ("running",), "node": (here,)})
    found: dict[str, int] = {}
    for task in sorted(running, key=lambda task: (task.service_name, task.slot)):
        with contextlib.suppress(Failure):  # it does not run yet
            found[task_name(task)] = client.task_process(task.id)[1]
    return found
