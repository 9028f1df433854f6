"""Types of options: what `mesh.cli.text` reads, as click wants it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from mesh.cli.text import TextError
from mesh.cli.text.duration import parse_duration
from mesh.cli.text.pairs import parse_attachment
from mesh.cli.text.port import parse_named_port, parse_publish
from mesh.cli.text.size import parse_size


class Parsed(click.ParamType):  # type: ignore[type-arg]  # generic in click's newer versions only
    """A type whose values are read by a function that raises TextError."""

    def __init__(self, name: str, read: Callable[[str], object]) -> None:
        self.name, self._read = name, read

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value; a usage error if it cannot be read. Values that have been read already stay."""
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except TextError as error:
            self.fail(str(error), param, ctx)


DURATION = Parsed("duration", parse_duration)
SIZE = Parsed("size", parse_size)
PORTS = Parsed("port", parse_publish)
NAMED_PORT = Parsed("named port", parse_named_port)
NETWORK = Parsed("network", parse_attachment)
