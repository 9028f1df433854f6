"""How results are printed: tables, JSON, Docker's templates; and the options that choose among them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import click

from mesh.cli.text import TextError
from mesh.cli.text.pairs import parse_filters
from mesh.cli.text.table import printable, table
from mesh.cli.text.template import Record, Template, parse_template

P = ParamSpec("P")
R = TypeVar("R")

_FORMATS = ("table", "json", "jsonl")


@dataclass(frozen=True, slots=True)
class ListOptions:
    """`--format`, `-q`, `--no-trunc`, `--filter`."""

    format: str
    quiet: bool
    no_trunc: bool
    filters: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Listing:
    """A list to print.

    `rows` are what templates and the table see, with the fields of Docker's lists; `columns` says which of them the
    table shows, and how they are headed; `objects` are what JSON shows: the whole objects of the API.
    """

    columns: Mapping[str, str]
    rows: Sequence[Record]
    objects: Sequence[object]
    more: Mapping[str, str]  # fields that only templates show, and their headings


def list_options(command: Callable[..., R]) -> Callable[..., R]:
    """Adds the options of a list to a command, which gets them as `options`."""

    @click.option(
        "--format",
        "format_",
        metavar="FORMAT",
        default="table",
        help="table, json (one array), jsonl (one object a line), or a template such as '{{.Name}} {{.ID}}'.",
    )
    @click.option("-q", "--quiet", is_flag=True, help="Only ids.")
    @click.option("--no-trunc", is_flag=True, help="Do not shorten anything.")
    @click.option(
        "-f", "--filter", "filters", metavar="KEY=VALUE", multiple=True, help="Only what matches; repeatable."
    )
    @functools.wraps(command)
    def with_options(
        *args: object, format_: str, quiet: bool, no_trunc: bool, filters: Sequence[str], **rest: object
    ) -> R:
        return command(*args, options=ListOptions(format_, quiet, no_trunc, parse_filters(filters)), **rest)

    return with_options


def print_list(options: ListOptions, listing: Listing) -> None:
    """Print a list as the user wants it. Raises TextError for a template that cannot be used."""
    if options.quiet:
        text = "".join(f"{row['ID']}\n" for row in listing.rows)
    elif options.format == "json":
        text = json.dumps(listing.objects, indent=2, ensure_ascii=False) + "\n"
    elif options.format == "jsonl":
        text = "".join(json.dumps(obj, ensure_ascii=False) + "\n" for obj in listing.objects)
    elif options.format == "table":
        rows = [[printable(str(row[key])) for key in listing.columns] for row in listing.rows]
        text = table(list(listing.columns.values()), rows)
    else:
        text = _templated(options.format, listing)
    click.echo(text, nl=False)


def _templated(format_: str, listing: Listing) -> str:
    """Docker's `table TEMPLATE` aligns at tabs under headings; any other template is used for each row."""
    headings = Record({**listing.columns, **listing.more})
    if format_.startswith("table "):
        template = read_format(format_.removeprefix("table "))
        lines = [template.render(data).split("\t") for data in (headings, *listing.rows)]
        width = max(len(line) for line in lines)
        padded = [line + [""] * (width - len(line)) for line in lines]
        return table(padded[0], padded[1:])
    template = read_format(format_)
    template.render(headings) if not listing.rows else None  # a wrong field is an error in an empty list, too
    return "".join(template.render(row) + "\n" for row in listing.rows)


def read_format(format_: str) -> Template:
    """A template. Raises TextError when it is none."""
    if "{{" not in format_:
        raise TextError(f'format "{format_}" is not one of {", ".join(_FORMATS)}, nor a template such as {{{{.Name}}}}')
    return parse_template(format_)


def inspect_option(command: Callable[..., R]) -> Callable[..., R]:
    """Adds `--format` to a command that shows whole objects, which gets it as `format_`."""
    return click.option(
        "-f",
        "--format",
        "format_",
        metavar="FORMAT",
        default="json",
        help="json (one array), jsonl, or a template such as '{{.Spec.Name}}'.",
    )(command)


def print_objects(format_: str, objects: Sequence[object]) -> None:
    """Print whole objects. Raises TextError for a template that cannot be used."""
    if format_ == "json":
        text = json.dumps(objects, indent=4, ensure_ascii=False) + "\n"
    elif format_ == "jsonl":
        text = "".join(json.dumps(obj, ensure_ascii=False) + "\n" for obj in objects)
    else:
        template = read_format(format_)
        text = "".join(template.render(obj) + "\n" for obj in objects)
    click.echo(text, nl=False)
