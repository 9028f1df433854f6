"""Placement constraints ("node.labels.zone==a") and preferences ("spread=node.labels.zone"): parsed, and matched. Pure.

Semantics are SwarmKit's: keys and values without regard to case, no patterns, a missing label counts as empty, several
constraints must all hold. `node.ip` takes an address or a prefix.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from control.model import Node

_PLAIN = ("node.id", "node.hostname", "node.ip", "node.role", "node.platform.os", "node.platform.arch")
_LABELS = "node.labels."
_OPERATOR = re.compile("==|!=")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class ConstraintError(ValueError):
    """The expression makes no sense. One sentence."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """One condition on a node."""

    key: str
    operator: Literal["==", "!="]
    value: str

    def matches(self, node: Node) -> bool:
        """Whether the node fulfils it."""
        held = _matches_address(node.status.data_address, self.value) if self.key == "node.ip" else self._equal(node)
        return held == (self.operator == "==")

    def _equal(self, node: Node) -> bool:
        found, wanted = attribute(node, self.key).lower(), self.value.lower()
        if self.key == "node.platform.arch":
            return _ARCHITECTURES.get(found, found) == _ARCHITECTURES.get(wanted, wanted)
        return found == wanted


@lru_cache(maxsize=1024)  # a cluster's services share a few expressions, read at every decision
def parse_constraint(text: str) -> Constraint:
    """Parse one expression. Raises ConstraintError."""
    found = _OPERATOR.search(text)
    if found is None:
        raise ConstraintError("must be KEY==VALUE or KEY!=VALUE")
    key, operator, value = _key(text[: found.start()]), found.group(), text[found.end() :].strip()
    if not value:
        raise ConstraintError("has no value")
    if key == "node.ip":
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError as error:
            raise ConstraintError(f'"{value}" is no address and no prefix') from error
    return Constraint(key, "==" if operator == "==" else "!=", value)


@lru_cache(maxsize=1024)
def parse_preference(text: str) -> str:
    """Parse "spread=KEY" and return the key. Raises ConstraintError."""
    strategy, found, key = text.partition("=")
    if not found or strategy.strip().lower() != "spread":
        raise ConstraintError("must be spread=KEY")
    return _key(key)


def all_match(node: Node, expressions: Iterable[str]) -> bool:
    """Whether a node fulfils all; an expression that makes no sense is fulfilled by none."""
    try:
        return all(parse_constraint(expression).matches(node) for expression in expressions)
    except ConstraintError:
        return False


def attribute(node: Node, key: str) -> str:
    """The value of a key (lower case, as parsed) on a node; labels that are not there are empty."""
    match key:
        case "node.id":
            return node.id
        case "node.hostname":
            return node.description.hostname
        case "node.ip":
            return node.status.data_address
        case "node.role":
            return node.spec.role
        case "node.platform.os":
            return node.description.os
        case "node.platform.arch":
            return node.description.architecture
        case _:
            return _label(node.spec.labels, key.removeprefix(_LABELS))


def _label(labels: Mapping[str, str], wanted: str) -> str:
    """`wanted` is in lower case; what it names need not be."""
    if wanted in labels:
        return labels[wanted]
    return next((value for label, value in labels.items() if label.lower() == wanted), "")


def _key(text: str) -> str:
    key = text.strip().lower()
    if key in _PLAIN or (key.startswith(_LABELS) and len(key) > len(_LABELS)):
        return key
    raise ConstraintError(f'"{text.strip()}" is no key: use {", ".join(_PLAIN)} or {_LABELS}NAME')


def _matches_address(address: str, wanted: str) -> bool:
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(wanted, strict=False)
    except ValueError:
        return False
