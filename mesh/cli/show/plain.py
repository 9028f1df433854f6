"""Model values as JSON shows them: every field, states by name, and fields of structs checked by templates."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from mesh.cli.text.template import Record


def plain(value: object) -> object:
    """Structs become records with all their fields, tuples lists, enumerations their names in lower case."""
    match value:
        case msgspec.Struct():
            return record(value)
        case enum.Enum():
            return value.name.lower()
        case Mapping():
            return {key: plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case _:
            return value


def record(value: msgspec.Struct, **more: object) -> Record:
    """A struct as a record, with `more` fields after its own."""
    fields = {name.rstrip("_"): plain(getattr(value, name)) for name in value.__struct_fields__}
    return Record({**fields, **more})
