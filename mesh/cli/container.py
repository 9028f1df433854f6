"""The options of `service create` and `service update` that only containers have, and what they set.

A list that is given to `service update` takes the place of the one before it, as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click
from msgspec.structs import replace

from control.model import ServiceSpec
from mesh.cli.options import Parsed
from mesh.cli.registry import auth_for
from mesh.cli.text import TextError
from mesh.cli.text.container import as_dict, parse_host, parse_mount, parse_setting, parse_ulimit, parse_words

Decorator = Callable[[Any], Any]


def _many(*declarations: str, **rest: Any) -> Decorator:
    return click.option(*declarations, multiple=True, **rest)


OPTIONS: list[Decorator] = [
    click.option("--entrypoint", type=Parsed("command", parse_words), metavar="COMMAND",
                 help="Instead of the image's entry point, in one argument."),
    click.option("--pull", type=click.Choice(["always", "missing", "never"]),
                 help="When an image is asked for. [always]"),
    click.option("--with-registry-auth", is_flag=True, default=None,
                 help="Pull as whom you have logged in to the image's registry (docker login)."),
    _many("--mount", type=Parsed("mount", parse_mount), metavar="MOUNT",
          help="type=bind|volume|tmpfs,source=,target=[,readonly], or /srv:/data:ro."),
    _many("--group", metavar="NAME|GID", help="Another group of the container's user."),
    _many("--host", type=Parsed("host", parse_host), metavar="NAME:ADDRESS", help="A line of /etc/hosts."),
    _many("--ulimit", type=Parsed("limit", parse_ulimit), metavar="NAME=SOFT[:HARD]", help="Such as nofile=1024:4096."),
    _many("--sysctl", type=Parsed("sysctl", parse_setting("sysctl")), metavar="NAME=VALUE",
          help="A kernel parameter of its own namespaces."),
    _many("--cap-add", metavar="CAPABILITY", help="Such as NET_ADMIN, or ALL."),
    _many("--cap-drop", metavar="CAPABILITY"),
    click.option("--read-only/--no-read-only", default=None, help="Its root file system cannot be written."),
    click.option("--init/--no-init", default=None, help="A first process that reaps, and passes signals on."),
    click.option("--tty/--no-tty", default=None, help="With a terminal."),
    click.option("--log-driver", metavar="NAME", help="Where the engine writes what it prints. [the engine's]"),
    _many("--log-opt", type=Parsed("option", parse_setting("log option")), metavar="NAME=VALUE"),
]  # fmt: skip

# Flag -> field of the container, and what makes its value of what was given.
_FIELDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "entrypoint": ("command", tuple),
    "pull": ("pull", str),
    "mount": ("mounts", tuple),
    "group": ("groups", tuple),
    "host": ("hosts", tuple),
    "ulimit": ("ulimits", tuple),
    "sysctl": ("sysctls", as_dict),
    "cap_add": ("cap_add", tuple),
    "cap_drop": ("cap_drop", tuple),
    "read_only": ("read_only", bool),
    "init": ("init", bool),
    "tty": ("tty", bool),
    "log_driver": ("log_driver", str),
    "log_opt": ("log_options", as_dict),
}


def with_container(spec: ServiceSpec, flags: Mapping[str, Any]) -> ServiceSpec:
    """The spec with all that the flags say of its containers. Raises TextError."""
    given = {flag: flags[flag] for flag in _FIELDS if flags.get(flag) not in (None, ())}
    if not given and not flags.get("with_registry_auth"):
        return spec
    container = spec.task.container
    if container is None:
        flag = next(iter(given), "with_registry_auth").replace("_", "-")
        raise TextError(f"--{flag} is for tasks of another kind: this service runs processes")
    changes: dict[str, Any] = {field: make(given[flag]) for flag, (field, make) in _FIELDS.items() if flag in given}
    if flags.get("with_registry_auth"):
        changes["registry_auth"] = auth_for(container.image)
    return replace(spec, task=replace(spec.task, container=replace(container, **changes)))
