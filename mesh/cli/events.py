"""`mesh events`: follows what changes.

One thread per kind reads its watch into a bounded queue; this thread prints. All of them end when the connection is
closed, at the latest with the process.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

import click

from control.model import Kind
from mesh.cli.errors import Failure
from mesh.cli.output import read_format
from mesh.cli.session import Session, pass_session
from mesh.cli.show.events import Teller, line
from mesh.cli.text.template import Record, Template

if TYPE_CHECKING:
    from mesh.cli.client import Change, Client

KINDS: tuple[Kind, ...] = ("node", "network", "service", "task")
# A slow terminal holds the streams back instead of filling memory.
QUEUE_MAX = 1000


@click.command("events")
@click.option("--kind", "kinds", type=click.Choice(KINDS), multiple=True, help="Only of this kind; repeatable.")
@click.option(
    "--format", "format_", metavar="FORMAT", default="text", help="text, jsonl, or a template such as '{{.Name}}'."
)
@pass_session
def events(session: Session, kinds: Sequence[Kind], format_: str) -> None:
    """Follow what changes in the cluster, until Ctrl-C.

    \b
    Examples:
      mesh events
      mesh events --kind task --format '{{.Action}} {{.Name}}'
    """
    template = read_format(format_) if format_ not in ("text", "json", "jsonl") else None
    assert set(KINDS) <= set(get_args(Kind))
    client = session.client()
    # Something that happened, why a stream ended, or None: it ended well.
    items: queue.Queue[Change | Failure | None] = queue.Queue(QUEUE_MAX)
    chosen = kinds or KINDS
    for kind in chosen:
        threading.Thread(target=_read, args=(client, kind, items), name=f"watch {kind}", daemon=True).start()
    teller, open_streams = Teller(), len(chosen)
    while open_streams:
        match items.get():
            case None:
                open_streams -= 1
            case Failure() as failure:
                raise failure
            case change if change.object is None:
                continue
            case change if change.action == "present":
                teller.present(change.object)
            case change:
                _print(teller, change, format_, template, session.wall_ms())


def _read(client: Client, kind: Kind, items: queue.Queue[Change | Failure | None]) -> None:
    try:
        for change in client.watch(kind):
            items.put(change)
    except Failure as failure:
        items.put(failure)
    else:
        items.put(None)


def _print(teller: Teller, change: Change, format_: str, template: Template | None, now_ms: int) -> None:
    assert change.object is not None
    match change.action:
        case "created" | "updated" | "removed" as happened:
            row = teller.row(happened, change.object, now_ms)
        case _:
            return
    click.echo(_text(row, format_, template))


def _text(row: Record, format_: str, template: Template | None) -> str:
    if template is not None:
        return template.render(row)
    return line(row) if format_ == "text" else json.dumps(row, ensure_ascii=False)
