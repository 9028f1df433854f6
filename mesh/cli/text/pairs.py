"""`key=value` in its forms: labels, environment, files of it, filters, network attachments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mesh.cli.text import TextError


def parse_label(text: str) -> tuple[str, str]:
    """`key=value`, or `key` for an empty value. Raises TextError."""
    key, _, value = text.partition("=")
    if not key:
        raise TextError(f'"{text}" is not a label: such as zone=a')
    return key, value


def parse_labels(texts: Iterable[str]) -> dict[str, str]:
    """Labels; the last one of a key wins. Raises TextError."""
    return dict(parse_label(text) for text in texts)


def parse_env(texts: Iterable[str], own: Mapping[str, str]) -> dict[str, str]:
    """`NAME=value`, or `NAME` for the value it has in `own`, if it has one there. Raises TextError."""
    env: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or name != name.strip():
            raise TextError(f'"{text}" is not an environment variable: such as NAME=value')
        if equals:
            env[name] = value
        elif name in own:
            env[name] = own[name]
    return env


def parse_env_file(path: str, content: str, own: Mapping[str, str]) -> dict[str, str]:
    """A file of them, one a line; empty lines and those that begin with # are left out. Raises TextError."""
    env: dict[str, str] = {}
    for number, raw in enumerate(content.removeprefix("\ufeff").splitlines(), start=1):
        line = raw.lstrip()
        if not line or line.startswith("#"):
            continue
        try:
            env |= parse_env([line], own)
        except TextError as error:
            raise TextError(f"{path}, line {number}: {error}") from error
    return env


def parse_filters(texts: Iterable[str]) -> dict[str, list[str]]:
    """`key=value` each; the value may hold another `=`. Raises TextError."""
    filters: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().lower()
        if not equals or not key or not value:
            raise TextError(f'"{text}" is not a filter: such as name=api')
        filters.setdefault(key, []).append(value)
    return filters


@dataclass(frozen=True, slots=True)
class Attachment:
    """`--network web` or `--network name=web,alias=a,alias=b`."""

    network: str
    aliases: tuple[str, ...] = ()


def parse_attachment(text: str) -> Attachment:
    """One value of `--network`. Raises TextError."""
    if "=" not in text:
        if not text or "," in text:
            raise TextError(f'"{text}" is not a network: such as web, or name=web,alias=db')
        return Attachment(text)
    network, aliases = "", []
    for part in text.split(","):
        key, _, value = part.partition("=")
        match key.strip().lower():
            case "name" if value and not network:
                network = value
            case "alias" if value:
                aliases.append(value)
            case _:
                raise TextError(f'network "{text}": "{part}" is not understood: there are name=, and alias= repeatedly')
    if not network:
        raise TextError(f'network "{text}" has no name=')
    return Attachment(network, tuple(aliases))
