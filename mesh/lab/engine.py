"""The Docker Engine of a lab host: real, of this machine's package, inside the host's namespaces. Blocking.

It listens on the host's own /run/docker.sock; its data are in the lab's directory, and its containers in the host's
control groups, so all of it goes with the host and the lab. It has no bridge and touches no packet filter: containers
get their networks from meshd. Images are made on the spot (`mesh.lab.image`); a host has no way to a registry.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import requests
from docker import APIClient
from docker.errors import DockerException, ImageNotFound

from mesh.lab import image
from overlay.names import NAME_SERVER

SOCKET = "/run/docker.sock"
# An engine is up in a second or two, with its containerd; on two cores shared by a lab's hosts it takes longer.
START_TIMEOUT_S = 60.0
# It stops its containers before it ends, which wait for their grace.
STOP_TIMEOUT_S = 30.0
_CALL_TIMEOUT_S = 60
_IMAGES = {image.LAB_IMAGE: image.lab_image, image.BUSYBOX_IMAGE: image.busybox_image}
# A host sees only its own control groups; in a namespace that begins at them, what the engine reads of its processes
# fits what it sees mounted. A hierarchy in which no group can hold a process yet (cpuset) stays the machine's: so its
# groups are named after the host everywhere. With version 2, a group hands controllers on only if nobody is in it.
_ENTER_GROUPS = """
for procs in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do
    case $procs in */cpuset/*) continue;; esac
    if [ -w "$procs" ]; then echo $$ > "$procs"; fi
done
exec unshare --cgroup sh -c '
    top=/sys/fs/cgroup
    if [ -e $top/cgroup.controllers ]; then
        mkdir -p $top/engine && echo $$ > $top/engine/cgroup.procs
        for name in $(cat $top/cgroup.controllers); do echo +$name > $top/cgroup.subtree_control; done
    fi
    exec "$0" "$@"
' "$0" "$@"
"""


class LabEngineError(Exception):
    """There can be no engine here. One sentence for the user."""


def check() -> None:
    """Raise LabEngineError if this machine has no engine to run."""
    if shutil.which("dockerd") is None or shutil.which("containerd") is None:
        raise LabEngineError("no Docker Engine is installed for the hosts of the lab: apt-get install docker.io")


def command(data: Path, group: str) -> list[str]:
    """What runs in the host; `group` is the name of the host's control groups."""
    options = {
        "data-root": str(data),
        "exec-root": "/run/docker",
        "pidfile": "/run/docker.pid",
        "host": f"unix://{SOCKET}",
        "bridge": "none",
        "dns": str(NAME_SERVER),
        "iptables": "false",
        "ip-forward": "false",
        "ip-masq": "false",
        "userland-proxy": "false",
        "cgroup-parent": f"/{group}",
        "exec-opt": "native.cgroupdriver=cgroupfs",
    }
    return ["sh", "-c", _ENTER_GROUPS, "dockerd", *(f"--{name}={value}" for name, value in options.items())]


def provide_images(socket: str, directory: Path) -> None:
    """Give the engine behind `socket` the lab's images, built once and kept in `directory`. Raises LabEngineError."""
    try:
        with APIClient(base_url=f"unix://{socket}", version="auto", timeout=_CALL_TIMEOUT_S) as client:
            for name in _IMAGES:
                try:
                    client.inspect_image(name)  # type: ignore[no-untyped-call]
                except ImageNotFound:
                    repository, _, tag = name.partition(":")
                    client.import_image_from_data(_built(name, directory), repository=repository, tag=tag)
    except (DockerException, requests.RequestException, OSError) as error:
        raise LabEngineError(f"the Docker Engine does not take the images of the lab: {error}") from error
    except image.ImageError as error:
        raise LabEngineError(str(error)) from error


def _built(name: str, directory: Path) -> bytes:
    file = directory / f"{name.partition(':')[0]}.tar"
    if not file.exists():
        made = file.with_suffix(".new")
        made.write_bytes(_IMAGES[name]())
        made.rename(file)
    return file.read_bytes()
