"""Disks of managers fill up: they are read-only before it is too late, another one leads, and it is over by itself."""

from __future__ import annotations

from collections import Counter

import pytest

from mesh.lab.lab import Lab
from tests.e2e.conftest import Cluster
from tests.e2e.test_managers import leader, managed, rows

pytestmark = pytest.mark.root

STATE = "/var/lib/meshd"
DISK_MIB = 320
# A manager stops creating when less than 72 MiB are free, and goes on with 144 (`control.store.space`).
LITTLE_MIB = 40
PATIENCE_S = 120.0


def small_disks(lab: Lab) -> None:
    """Every host keeps its state on a disk of its own."""
    for host in lab.hosts():
        lab.stop_daemon(host)
        done = lab.exec(host, ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", STATE])
        assert done.returncode == 0, done.stderr
        lab.start_daemon(host)


def free_mib(lab: Lab, host: str) -> int:
    return int(lab.exec(host, ["df", "--output=avail", "-m", STATE]).stdout.split()[-1])


def fill(lab: Lab, host: str, leave_mib: int) -> None:
    size_mib = free_mib(lab, host) - leave_mib
    done = lab.exec(host, ["fallocate", "-l", f"{size_mib}MiB", f"{STATE}/ballast"])
    assert done.returncode == 0, done.stderr


def fill_up(lab: Lab, host: str) -> None:
    done = lab.exec(host, ["sh", "-c", f"cat /dev/zero >{STATE}/ballast-2"])
    assert "No space left" in done.stderr


def clear(lab: Lab, host: str) -> None:
    assert lab.exec(host, ["sh", "-c", f"rm -f {STATE}/ballast*"]).returncode == 0


@pytest.mark.hosts(3)
@pytest.mark.timeout(420)
def test_a_manager_with_a_full_disk_hands_over_and_all_of_them_are_read_only(bare_lab: Lab) -> None:
    lab = bare_lab
    small_disks(lab)
    cluster = managed(lab)
    cluster.until("somebody leads", lambda: leader(cluster, "h1") != "")
    first = leader(cluster, "h1")
    others = [host for host in cluster.hosts if host != first]

    # One has little space: it leads no more, and nobody notices.
    fill(lab, first, LITTLE_MIB)
    cluster.until("another one leads", lambda: leader(cluster, others[0]) not in ("", first), PATIENCE_S)
    cluster.mesh("network", "create", "without-it", host=first)
    # None at all: what it cannot write waits, while the others go on.
    fill_up(lab, first)
    for number in range(30):
        cluster.mesh("network", "create", f"more{number}", host=others[0])

    # All have little space: nothing is created, and everything can be seen and removed.
    for host in others:
        fill(lab, host, LITTLE_MIB)

    said: Counter[str] = Counter()

    def refused() -> bool:
        removed = cluster.mesh("network", "rm", "probe", host=others[0], check=False)
        done = cluster.mesh("network", "create", "probe", host=others[0], check=False)
        said.update((f"rm: {removed.stderr}", f"create: {done.stderr}"))
        return done.returncode != 0 and "MiB are free on the disk of" in done.stderr

    try:
        cluster.until("nothing can be created", refused, PATIENCE_S)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{said}\n{[(host, free_mib(lab, host)) for host in cluster.hosts]}") from error
    assert cluster.mesh("network", "ls", host=others[0]).stdout.count("more") == 30
    cluster.mesh("network", "rm", "more7", host=others[1])

    # There is space again.
    for host in cluster.hosts:
        clear(lab, host)

    def created() -> bool:
        return cluster.mesh("network", "create", "again", host=first, check=False).returncode == 0

    cluster.until("networks can be created", created, PATIENCE_S)
    cluster.until("all managers are well", lambda: well(cluster), PATIENCE_S)
    names = {
        line.split("|")[0] for line in cluster.mesh("network", "ls", "--format", "{{.Name}}", host=first).stdout.split()
    }
    assert {"without-it", "again", *(f"more{n}" for n in range(30) if n != 7)} <= names
    assert "more7" not in names


def well(cluster: Cluster) -> bool:
    """All have the same state, none has anything to say."""
    found = rows(cluster, "h1")
    return len({str(row["Version"]) for row in found}) == 1 and not any(row.get("Message") for row in found)
