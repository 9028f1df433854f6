"""The name servers that are measured side by side: one worker each, the same zone, nothing but answering.

Each writes its files into a directory of its own and runs in the foreground on 127.0.0.1:PORT. None is started by the
system's services; which packages they come from is in PACKAGES.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("dnsperf", "knot", "nsd", "unbound", "dnsmasq-base", "bind9", "docker.io")
ROOT = Path(__file__).resolve().parents[3]
ZONE = "mesh"

Record = tuple[str, str]  # name without the zone, IPv4 address


@dataclass(frozen=True)
class Command:
    """How a server is started."""

    argv: tuple[str, ...]
    cwd: Path


def records(count: int) -> list[Record]:
    """`count` names, each with an address."""
    return [(f"svc{i}", f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}") for i in range(count)]


def ours(directory: Path, port: int, zone: Sequence[Record], upstream: int | None) -> Command:
    file = directory / "records"
    file.write_text("".join(f"{name}.{ZONE} A {address}\n" for name, address in zone))
    upstreams = (f"127.0.0.1:{upstream}",) if upstream else ()
    call = f"serve_records({str(file)!r}, '127.0.0.1', {port}, upstreams={upstreams!r})"
    return Command((sys.executable, "-c", f"from dns.service import serve_records; {call}"), ROOT)


def ours_dnslib(directory: Path, port: int, zone: Sequence[Record], _upstream: int | None) -> Command:
    """What most Python servers do: take each question apart with a library, pack each answer."""
    file = directory / "server.py"
    file.write_text(
        f"""import socket, dnslib
zone = dict({[(f"{n}.{ZONE}.", a) for n, a in zone]!r})
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", {port}))
while True:
    data, client = sock.recvfrom(4096)
    asked = dnslib.DNSRecord.parse(data)
    reply = asked.reply()
    address = zone.get(str(asked.q.qname))
    if address:
        reply.add_answer(dnslib.RR(asked.q.qname, rdata=dnslib.A(address), ttl=5))
    sock.sendto(reply.pack(), client)
"""
    )
    return Command((sys.executable, str(file)), ROOT)


def _zone_file(directory: Path, zone: Sequence[Record]) -> Path:
    file = directory / "zone"
    head = f"$ORIGIN {ZONE}.\n$TTL 5\n@ SOA ns hostmaster 1 3600 600 86400 1\n@ NS ns\nns A 127.0.0.1\n"
    file.write_text(head + "".join(f"{name} A {address}\n" for name, address in zone))
    return file


def knot(directory: Path, port: int, zone: Sequence[Record], _upstream: int | None) -> Command:
    file = _zone_file(directory, zone)
    conf = directory / "knot.conf"
    conf.write_text(
        f"""server:
  listen: 127.0.0.1@{port}
  rundir: {directory}
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
database:
  storage: {directory}
zone:
  - domain: {ZONE}
    file: {file}
    zonefile-load: whole
    journal-content: none
"""
    )
    return Command(("knotd", "-c", str(conf)), directory)


def nsd(directory: Path, port: int, zone: Sequence[Record], _upstream: int | None) -> Command:
    file = _zone_file(directory, zone)
    conf = directory / "nsd.conf"
    conf.write_text(
        f"""server:
  ip-address: 127.0.0.1@{port}
  server-count: 1
  username: ""
  zonesdir: "{directory}"
  database: ""
  pidfile: "{directory}/nsd.pid"
  xfrdfile: "{directory}/xfrd.state"
  zonelistfile: "{directory}/zone.list"
  rrl-ratelimit: 0
remote-control:
  control-enable: no
zone:
  name: {ZONE}
  zonefile: {file}
"""
    )
    return Command(("nsd", "-d", "-c", str(conf)), directory)


def unbound(directory: Path, port: int, zone: Sequence[Record], upstream: int | None) -> Command:
    conf = directory / "unbound.conf"
    data = "".join(f'  local-data: "{name}.{ZONE}. 5 A {address}"\n' for name, address in zone)
    forward = f'forward-zone:\n  name: "."\n  forward-addr: 127.0.0.1@{upstream}\n' if upstream else ""
    conf.write_text(
        f"""server:
  interface: 127.0.0.1@{port}
  do-daemonize: no
  num-threads: 1
  username: ""
  chroot: ""
  use-syslog: no
  directory: "{directory}"
  pidfile: ""
  do-not-query-localhost: no
  module-config: "iterator"
  local-zone: "{ZONE}." static
{data}{forward}"""
    )
    return Command(("unbound", "-d", "-c", str(conf)), directory)


def dnsmasq(directory: Path, port: int, zone: Sequence[Record], upstream: int | None) -> Command:
    hosts = directory / "hosts"
    hosts.write_text("".join(f"{address} {name}.{ZONE}\n" for name, address in zone))
    forward = (f"--server=127.0.0.1#{upstream}",) if upstream else ()
    return Command(
        ("dnsmasq", "-k", f"--port={port}", "--listen-address=127.0.0.1", "--bind-interfaces", "--no-hosts",
         f"--addn-hosts={hosts}", "--no-resolv", "--local-ttl=5", f"--local=/{ZONE}/", "--cache-size=150000",
         "--user=root", "--conf-file=/dev/null", "--pid-file=", *forward),
        directory,
    )  # fmt: skip


def bind9(directory: Path, port: int, zone: Sequence[Record], _upstream: int | None) -> Command:
    file = _zone_file(directory, zone)
    conf = directory / "named.conf"
    conf.write_text(
        f"""options {{ directory "{directory}"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
  recursion no; pid-file none; session-keyfile none; dnssec-validation no; }};
controls {{ }};
zone "{ZONE}" {{ type primary; file "{file}"; }};
"""
    )
    return Command(("named", "-g", "-n", "1", "-c", str(conf)), directory)


RIVALS = {"ours": ours, "knot": knot, "nsd": nsd, "unbound": unbound, "dnsmasq": dnsmasq, "bind9": bind9,
          "dnslib": ours_dnslib}  # fmt: skip
FORWARDERS = ("ours", "unbound", "dnsmasq")
