"""Mistakes in what only containers have: each is one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from control.container import LIST_MAX, MOUNTS_MAX, container_mistakes
from control.model import ContainerSpec, Mount, ServiceSpec, TaskSpec, Ulimit
from control.spec import service_mistakes


def mistakes(**fields: Any) -> list[str]:
    return container_mistakes(ContainerSpec(image="debian:12", **fields))


def test_what_is_well() -> None:
    assert mistakes(
        mounts=(
            Mount(kind="bind", source="/srv", target="/data", read_only=True),
            Mount(kind="volume", source="store.1", target="/vol"),
            Mount(kind="volume", target="/own"),
            Mount(kind="tmpfs", target="/mem", size_bytes=1 << 20),
        ),
        ulimits=(Ulimit(name="nofile", soft=1, hard=-1), Ulimit(name="core", soft=-1, hard=-1)),
        sysctls={"net.core.somaxconn": "1024"},
        groups=("video", "44"), cap_add=("NET_ADMIN", "CAP_CHOWN"), cap_drop=("ALL",),
        hosts=("10.0.0.9 store db", "fd00::1 six"), log_driver="json-file", log_options={"max-size": "1m"},
    ) == []  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"mounts": (Mount(kind="bind", source="srv", target="/x"),)}, 'source must be an absolute path on the node'),
        ({"mounts": (Mount(kind="bind", source="/a", target="x"),)}, 'target of a mount must be an absolute path'),
        ({"mounts": (Mount(kind="tmpfs", target="/etc/hosts/"),)}, "nothing can be mounted at /etc/hosts"),
        ({"mounts": (Mount(kind="tmpfs", target="/.mesh"),)}, "nothing can be mounted at /.mesh"),
        ({"mounts": (Mount(kind="tmpfs", target="/"),)}, "nothing can be mounted at /"),
        ({"mounts": (Mount(kind="tmpfs", target="/a"), Mount(kind="tmpfs", target="/a/"))}, "two mounts have"),
        ({"mounts": (Mount(kind="tmpfs", target="/a", source="/b"),)}, "a tmpfs has no source"),
        ({"mounts": (Mount(kind="volume", target="/a", source="a/b"),)}, "cannot be the name of a volume"),
        ({"mounts": (Mount(kind="volume", target="/a", size_bytes=1 << 20),)}, "a size is for a tmpfs"),
        ({"mounts": (Mount(kind="tmpfs", target="/a", size_bytes=1),)}, "at least 4096 bytes"),
        ({"ulimits": (Ulimit(name="files", soft=1, hard=1),)}, '"files" is no limit of processes: there are core'),
        ({"ulimits": (Ulimit(name="core", soft=2, hard=1),)}, "limit core: 2 must not be above 1"),
        ({"ulimits": (Ulimit(name="core", soft=-1, hard=1),)}, "limit core: -1 must not be above 1"),
        ({"ulimits": (Ulimit(name="core", soft=1, hard=1),) * 2}, "a limit of processes is given twice"),
        ({"sysctls": {"a b": "1"}}, '"a b" cannot be the name of a sysctl'),
        ({"sysctls": {"a": "1\n2"}}, "sysctl a: its value must be one line"),
        ({"cap_add": ("net admin",)}, '"net admin" cannot be the name of a capability'),
        ({"groups": ("a:b",)}, '"a:b" cannot be the name of a group'),
        ({"hosts": ("store 10.0.0.9",)}, "a host entry must be an address and names"),
        ({"hosts": ("10.0.0.9",)}, "a host entry must be an address and names"),
        ({"hosts": ("10.0.0.9 a\n10.0.0.8",)}, "a host entry must be an address and names"),
        ({"log_driver": "json file"}, '"json file" cannot be the name of a log driver'),
        ({"log_options": {"": "1"}}, '"" cannot be the name of a log option'),
        ({"groups": ("a",) * (LIST_MAX + 1)}, f"at most {LIST_MAX} groups are possible, not {LIST_MAX + 1}"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_sentence(fields: dict[str, Any], sentence: str) -> None:
    (found,) = mistakes(**fields)
    assert sentence in found


def test_too_many_mounts() -> None:
    many = tuple(Mount(kind="tmpfs", target=f"/m{n}") for n in range(MOUNTS_MAX + 1))
    assert mistakes(mounts=many) == [f"at most {MOUNTS_MAX} mounts are possible, not {MOUNTS_MAX + 1}"]


def test_they_are_mistakes_of_the_service() -> None:
    container = ContainerSpec(image="x", mounts=(Mount(kind="tmpfs", target="a"),))
    (found,) = service_mistakes(ServiceSpec(name="api", task=TaskSpec(container=container)))
    assert found.startswith('service "api": target of a mount must be')
