"""The options that only containers have: what they say, and what they change."""

from __future__ import annotations

from typing import Any

import click
import pytest

from control.model import ContainerSpec, Mount, ProcessSpec, ServiceSpec, TaskSpec, Ulimit
from mesh.cli.container import OPTIONS, with_container
from mesh.cli.show.services import _surroundings
from mesh.cli.text import TextError
from mesh.cli.text.container import parse_host, parse_mount, parse_setting, parse_ulimit, parse_words

SPEC = ServiceSpec(name="api", task=TaskSpec(container=ContainerSpec(image="x", groups=("old",), read_only=True)))


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("type=bind,source=/a,target=/b", Mount(kind="bind", source="/a", target="/b")),
        ("type=bind,src=/a,dst=/b,ro", Mount(kind="bind", source="/a", target="/b", read_only=True)),
        ("src=store,destination=/b,readonly=false", Mount(kind="volume", source="store", target="/b")),
        ("type=tmpfs,target=/b,tmpfs-size=1M", Mount(kind="tmpfs", target="/b", size_bytes=1 << 20)),
        ("/a:/b:ro", Mount(kind="bind", source="/a", target="/b", read_only=True)),
        ("store:/b", Mount(kind="volume", source="store", target="/b")),
    ],
)
def test_mounts(text: str, mount: Mount) -> None:
    assert parse_mount(text) == mount


@pytest.mark.parametrize(
    "text", ["", "/a", "a:b", "/a:/b:rx", "type=disk,target=/a", "type=bind,source=/a", "x=y", "ro"]
)
def test_what_is_no_mount(text: str) -> None:
    with pytest.raises(TextError, match="mount"):
        parse_mount(text)


def test_limits_hosts_and_settings() -> None:
    assert parse_ulimit("nofile=1:2") == Ulimit(name="nofile", soft=1, hard=2)
    assert parse_ulimit("core=unlimited") == Ulimit(name="core", soft=-1, hard=-1)
    assert parse_host("store:10.0.0.9") == "10.0.0.9 store"
    assert parse_host("store:[fd00::1]") == "fd00::1 store"
    assert parse_setting("sysctl")("a=b=c") == ("a", "b=c")
    assert parse_words("sh -c 'a b'") == ("sh", "-c", "a b")
    for read, text in ((parse_ulimit, "nofile"), (parse_host, "store"), (parse_setting("x"), "=1"), (parse_words, "'")):
        with pytest.raises(TextError):
            read(text)  # type: ignore[operator]


def test_what_is_given_is_set_and_lists_as_a_whole() -> None:
    flags: dict[str, Any] = {
        "group": ("a", "b"), "read_only": False, "init": True, "tty": None, "mount": (), "pull": "never",
        "sysctl": (("k", "1"), ("k", "2")), "entrypoint": ("run",),
    }  # fmt: skip
    changed = with_container(SPEC, flags).task.container
    assert changed == ContainerSpec(
        image="x", groups=("a", "b"), init=True, pull="never", sysctls={"k": "2"}, command=("run",)
    )
    assert with_container(SPEC, {}) is SPEC


def test_processes_have_none_of_it() -> None:
    spec = ServiceSpec(name="api", task=TaskSpec(process=ProcessSpec(command=("run",))))
    with pytest.raises(TextError, match="--read-only is for tasks of another kind"):
        with_container(spec, {"read_only": True})


def test_every_option_is_looked_at() -> None:
    command = click.command()(lambda: None)
    for option in OPTIONS:
        command = option(command)
    names = [parameter.name for parameter in command.params]
    assert len(names) == len(OPTIONS)
    for name in names:
        with pytest.raises(TextError):
            with_container(ServiceSpec(name="a", task=TaskSpec()), {name: "given"})


def test_inspect_shows_what_differs_from_every_container() -> None:
    container = ContainerSpec(
        image="x", groups=("a",), init=True, read_only=True, sysctls={"k": "1"}, cap_drop=("ALL",), pull="never",
        mounts=(Mount(kind="bind", source="/a", target="/b", read_only=True), Mount(kind="volume", target="/c")),
        ulimits=(Ulimit(name="core", soft=0, hard=-1),),
    )  # fmt: skip
    shown = dict(line[1:] for line in _surroundings(container))
    assert shown == {
        "Mounts": "bind /a at /b, read only; volume - at /c", "Groups": "a", "Limits": "core=0:-1", "Sysctls": "k=1",
        "Capabilities dropped": "ALL", "Root file system": "read only", "Init": "yes", "Pulled": "never",
    }  # fmt: skip
    assert _surroundings(ContainerSpec(image="x")) == []
