"""One run of the virtual machine: started, watched, bounded, ended.

QEMU boots an unpacked kernel with the machine's own root file system, read-only, and a directory of results, writable;
so whatever Python and tools are here are there too. With KVM where it works, otherwise emulated (ten times slower).
"""

from __future__ import annotations

import os
import resource
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.vm.initramfs import build
from tests.vm.kernel import GuestKernel, VmError, obtain

QEMU = "qemu-system-x86_64"
# How long a machine that does nothing but switch itself off may take under KVM. Where /dev/kvm is there but does not
# work, it hangs or is refused.
_KVM_PROBE_S = 8.0
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the job's exit code, or None when the machine ended or was ended without one."""

    status: int | None
    seconds: float
    boot_s: float
    processor_s: float  # of all its processors, whatever else the machine outside had to do


def prepare() -> Path:
    """A directory of results, for what the job shall find there. The caller removes it."""
    return Path(tempfile.mkdtemp(prefix="meshd-vm-"))


def run(
    results: Path, job: str, limit_s: float, memory_mb: int = 1536, cpus: int = 2, deterministic: bool = False
) -> Outcome:
    """Run a shell script as root in a fresh machine; its output goes to ours. Raises VmError.

    `results` is /run/results in the machine.

    `deterministic`: time in the machine is the number of instructions it ran (one CPU), for measurements.
    """
    if shutil.which(QEMU) is None:
        raise VmError("QEMU is not installed: apt install qemu-system-x86")
    kernel = obtain()
    initrd = results / "initrd"
    initrd.write_bytes(build(kernel))
    (results / "job.sh").write_text(job)
    accelerator = "tcg" if deterministic else accelerate()
    began = time.monotonic()
    argv = _command(kernel, initrd, results, accelerator, memory_mb, cpus, deterministic)
    print(f"vm: kernel {kernel.version}, {accelerator}, at most {limit_s:.0f} s", flush=True)
    before = _processor_s()
    _watch(argv, began + limit_s)
    seconds = time.monotonic() - began
    booted, status = results / "booted", results / "status"
    return Outcome(
        int(status.read_text()) if status.exists() else None,
        seconds,
        float(booted.read_text().split()[0]) if booted.exists() else 0.0,
        _processor_s() - before,
    )


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def accelerate() -> str:
    """ "kvm" when a machine under KVM does run, else "tcg"."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    # With no disk and no kernel the firmware reboots for ever, which `-no-reboot` makes an exit.
    probe = [QEMU, "-accel", "kvm", "-cpu", "host", "-m", "64", "-display", "none", "-nodefaults", "-no-reboot"]
    probe += ["-boot", "reboot-timeout=1"]
    try:
        done = subprocess.run(probe, capture_output=True, timeout=_KVM_PROBE_S, check=False)
    except subprocess.TimeoutExpired:
        return "tcg"
    return "kvm" if done.returncode == 0 else "tcg"


def _command(
    kernel: GuestKernel, initrd: Path, results: Path, accelerator: str, memory_mb: int, cpus: int, deterministic: bool
) -> list[str]:
    append = f"console=ttyS0 quiet panic=-1 mitigations=off vm.script={_HERE / 'guest.sh'} vm.modules={kernel.root}"
    if deterministic:
        # Idle time passes as outside: jumping over it would let everything time out that waits for the host's files.
        speed = ["-accel", "tcg,thread=single", "-cpu", "max", "-icount", "shift=0,sleep=on", "-smp", "1"]
    elif accelerator == "kvm":
        speed = ["-accel", "kvm", "-cpu", "host", "-smp", str(cpus)]
    else:
        speed = ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", str(cpus)]
    return [
        QEMU, *speed, "-m", str(memory_mb), "-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio",
        "-device", "virtio-rng-pci",
        "-kernel", str(kernel.image), "-initrd", str(initrd), "-append", append,
        "-virtfs", "local,path=/,mount_tag=host,security_model=none,multidevs=remap,readonly=on",
        "-virtfs", f"local,path={results},mount_tag=results,security_model=none,multidevs=remap",
    ]  # fmt: skip


def _watch(argv: list[str], deadline: float) -> None:
    """Pass on what the machine prints until it ends; end it at the deadline."""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as machine:
        assert machine.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(machine.stdout, selectors.EVENT_READ)
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    print("\nvm: the time is over, the machine is switched off", flush=True)
                    machine.kill()
                    return
                if not selector.select(left):
                    continue
                data = os.read(machine.stdout.fileno(), 65536)
                if not data:
                    return
                sys.stdout.write(data.decode(errors="replace").replace("\r\n", "\n"))
                sys.stdout.flush()
