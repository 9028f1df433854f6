"""A group of commands that are imported only when one of them runs, so that help and completion are quick."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass

import click

# Other names of Docker's for the same verbs; not listed, but understood.
ALIASES = {"list": "ls", "remove": "rm", "tasks": "ps"}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command is ("module:attribute"), what help says of it, and under which heading."""

    place: str
    help: str
    section: str = "Commands"


class AliasedGroup(click.Group):
    """A group that knows Docker's other names, and what was probably meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is named, or a usage error that says which one may have been meant."""
        names = self.list_commands(ctx)
        if args and args[0] not in names and ALIASES.get(args[0]) in names:
            args = [ALIASES[args[0]], *args[1:]]
        if args and args[0] not in names and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], names, n=1)
            hint = f'; did you mean "{near[0]}"?' if near else f": there are {', '.join(names)}"
            raise click.UsageError(f'"{ctx.command_path}" has no command "{args[0]}"{hint}', ctx)
        return super().resolve_command(ctx, args)


class LazyGroup(AliasedGroup):
    """A group of entries."""

    def __init__(self, *, entries: Mapping[str, Entry], **rest: object) -> None:
        super().__init__(**rest)  # type: ignore[arg-type]
        self.entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of help."""
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.place.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command), entry.place
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands in help, without importing them."""
        for section in dict.fromkeys(entry.section for entry in self.entries.values()):
            with formatter.section(section):
                formatter.write_dl([(n, e.help) for n, e in self.entries.items() if e.section == section])
