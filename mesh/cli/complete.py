"""Names of the cluster's objects for shell completion. Silent and quick: without a daemon there are none."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from mesh.cli.contexts import DEFAULT, Contexts, config_directory
from mesh.cli.errors import Failure
from mesh.cli.session import DEFAULT_SOCKET

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from mesh.cli.client import Client

# A shell that waits longer than this for a completion feels stuck.
TIMEOUT_S = 1.0
# More names than this do not help anybody.
NAMES_MAX = 500

Completer = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


def names(kind: str) -> Completer:
    """A completer of the names of "node", "network", "service" or "task"."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from mesh.cli.client import Client

        given = ctx.find_root().params
        contexts = Contexts(config_directory(os.environ))
        context = str(given.get("context") or contexts.current())
        try:
            place = str(given.get("socket") or DEFAULT_SOCKET) if context == DEFAULT else contexts.get(context)
            client = Client(place, TIMEOUT_S)
            try:
                found = sorted(set(_names(client, kind)))
            finally:
                client.close()
        except Failure:
            return []
        return [CompletionItem(name) for name in found if name.startswith(incomplete)][:NAMES_MAX]

    return complete


def _names(client: Client, kind: str) -> list[str]:
    from control.lifecycle import is_terminal
    from control.model import Network, Node, Service, Task, User

    match kind:
        case "node":
            return [node.description.hostname or node.id for node in client.list(Node)]
        case "network":
            return [network.spec.name for network in client.list(Network)]
        case "service":
            return [service.spec.name for service in client.list(Service)]
        case "user":
            return [user.id for user in client.list(User)]
        case _:
            tasks = client.list(Task)
            return [f"{t.service_name}.{t.slot}" if t.slot else t.id for t in tasks if not is_terminal(t.status.state)]
