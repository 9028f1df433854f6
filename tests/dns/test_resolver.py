"""What is answered to whom: names of two networks, as their clients, multi-homed ones and the host see them."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

import dnslib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dns import wire
from dns.plan import Address, DnsPlan, NetworkNames, ServiceNames, TaskNames
from dns.resolver import Drop, Forward, Resolver, dump

WEB, DB = "n1", "n2"


def task(
    ident: str, slot: int, address: str, *, ready: bool = True, local: bool = False, hostname: str = ""
) -> TaskNames:
    return TaskNames(ident, slot, hostname or f"host-{ident}", (), (ip_address(address),), ready, local)


API = ServiceNames(
    name="api",
    aliases=("backend",),
    vips=(IPv4Address("10.1.0.2"),),
    tasks=(task("t1", 1, "10.1.0.11", hostname="api.1"), task("t2", 2, "10.1.0.12", ready=False)),
    ports=(("http", "tcp", 8080), ("", "udp", 53)),
)
SPREAD = ServiceNames(
    name="spread",
    aliases=(),
    vips=(),
    tasks=(task("t4", 0, "10.1.0.14"), task("t5", 0, "10.1.0.15"), task("t6", 0, "10.1.0.16", ready=False)),
    ttl_s=2,
)
SILENT = ServiceNames("silent", (), (), (task("t7", 1, "10.1.0.17", ready=False),))
SIX = ServiceNames("six", ("backend",), (IPv6Address("fd00::2"),), ())
STORE = ServiceNames("store", ("api",), (IPv4Address("10.2.0.2"),), (task("t8", 1, "10.2.0.11", hostname="store"),))

PLAN = DnsPlan(
    networks=(
        NetworkNames(WEB, "web", IPv4Address("10.1.0.1"), (API, SPREAD, SILENT, SIX), (IPv4Network("10.1.0.0/16"),)),
        NetworkNames(DB, "db", IPv4Address("10.2.0.1"), (STORE,)),
    ),
    nodes={"h1": IPv4Address("192.0.2.1"), "h2.example.com": IPv4Address("192.0.2.2")},
    multihomed={
        (WEB, IPv4Address("10.1.0.50")): (WEB, DB),
        (DB, IPv4Address("10.2.0.50")): (WEB, DB),
        (DB, IPv4Address("10.2.0.51")): (DB, WEB),
    },
)


def resolver(plan: DnsPlan = PLAN) -> Resolver:
    made = Resolver(random.Random(7))
    made.load(plan)
    return made


def asked(name: str, kind: str = "A", *, edns: bool = False) -> bytes:
    record = dnslib.DNSRecord.question(name, kind)
    if edns:
        record.add_ar(dnslib.EDNS0(udp_len=1232))
    return bytes(record.pack())


def outcome(made: Resolver, name: str, kind: str = "A", network: str | None = WEB, client: str = "") -> str:
    """The answer as text: its data, or `no data`, `no name`, `forward`. Asked twice: slowly, then from the cache."""
    special = made.special(network)
    view = special.get(ip_address(client).packed, made.view(network)) if client else made.view(network)
    first = _text(made.udp(view, asked(name, kind)))
    assert _text(made.udp(view, asked(name, kind))) == first
    assert _text(made.tcp(view, asked(name, kind))) == first
    return first


def _text(answer: bytes | Forward | Drop) -> str:
    if not isinstance(answer, bytes):
        return type(answer).__name__.lower()
    record = dnslib.DNSRecord.parse(answer)
    if record.header.rcode == dnslib.RCODE.NXDOMAIN:
        assert [rr.rtype for rr in record.auth] == [wire.SOA]
        return "no name"
    assert record.header.rcode == dnslib.RCODE.NOERROR
    assert record.header.aa
    if not record.rr:
        assert [rr.rtype for rr in record.auth] == [wire.SOA]
        return "no data"
    return " ".join(sorted(str(rr.rdata) for rr in record.rr))


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        # services
        ("api", "A", "10.1.0.2"),
        ("API", "A", "10.1.0.2"),
        ("api.web.mesh", "A", "10.1.0.2"),
        ("api.web", "A", "10.1.0.2"),
        ("api", "AAAA", "no data"),
        ("six", "AAAA", "fd00::2"),
        ("six", "A", "no data"),
        ("api", "TXT", "no data"),
        ("api", "ANY", "no data"),
        ("api", "MX", "no data"),
        # an alias of two services answers for both, each in its family
        ("backend", "A", "10.1.0.2"),
        ("backend", "AAAA", "fd00::2"),
        ("tasks.backend", "A", "10.1.0.11"),
        # tasks
        ("tasks.api", "A", "10.1.0.11"),
        ("tasks.api.web.mesh", "A", "10.1.0.11"),
        ("spread", "A", "10.1.0.14 10.1.0.15"),
        ("tasks.spread", "A", "10.1.0.14 10.1.0.15"),
        ("1.api", "A", "10.1.0.11"),
        ("1.api.web.mesh", "A", "10.1.0.11"),
        ("t1", "A", "10.1.0.11"),
        ("api.1", "A", "10.1.0.11"),
        ("api.1.web.mesh", "A", "10.1.0.11"),
        ("host-t4", "A", "10.1.0.14"),
        # known, and nothing ready
        ("silent", "A", "no data"),
        ("tasks.silent", "A", "no data"),
        ("2.api", "A", "no data"),
        ("t2", "A", "no data"),
        ("host-t6", "A", "no data"),
        # unknown
        ("9.api", "A", "no name"),
        ("9.api.web.mesh", "A", "no name"),
        ("nobody", "A", "no name"),
        ("tasks.nobody.web.mesh", "A", "no name"),
        ("nobody.web.mesh", "A", "no name"),
        ("nobody.nowhere.mesh", "A", "no name"),
        ("nowhere.mesh", "A", "no name"),
        ("api.mesh", "A", "no name"),
        ("store", "A", "no name"),
        ("store.db.mesh", "A", "no name"),
        ("api.77", "A", "no name"),
        ("1.2.3.4", "A", "no name"),
        ("x.invalid", "A", "no name"),
        # names that have names below them
        ("mesh", "A", "no data"),
        ("web.mesh", "A", "no data"),
        ("node.mesh", "A", "no data"),
        ("_tcp.api", "A", "no data"),
        ("mesh", "NS", "no data"),
        ("mesh", "SOA", "ns.mesh. hostmaster.mesh. 1 3600 600 86400 1"),
        # nodes
        ("h1.node.mesh", "A", "192.0.2.1"),
        ("h2.example.com.node.mesh", "A", "192.0.2.2"),
        ("h9.node.mesh", "A", "no name"),
        # services' ports
        ("_http._tcp.api", "SRV", "0 1 8080 1.api.web.mesh."),
        ("_53._udp.api", "SRV", "0 1 53 1.api.web.mesh."),
        ("_http._tcp.backend.web.mesh", "SRV", "0 1 8080 1.api.web.mesh."),
        ("_http._tcp.api", "A", "no data"),
        ("_ftp._tcp.api", "SRV", "no name"),
        # addresses
        ("2.0.1.10.in-addr.arpa", "PTR", "api.web.mesh."),
        ("11.0.1.10.in-addr.arpa", "PTR", "1.api.web.mesh."),
        ("14.0.1.10.in-addr.arpa", "PTR", "t4.web.mesh."),
        ("17.0.1.10.in-addr.arpa", "PTR", "1.silent.web.mesh."),
        ("99.0.1.10.in-addr.arpa", "PTR", "no name"),
        ("99.0.9.10.in-addr.arpa", "PTR", "forward"),
        ("1.0.0.127.in-addr.arpa", "PTR", "localhost."),
        ("x.y.in-addr.arpa", "PTR", "forward"),
        ("2" + ".0" * 29 + ".d.f.ip6.arpa", "PTR", "six.web.mesh."),
        # others' names, also those that look a little like ours
        ("example.com", "A", "forward"),
        ("www.example.com", "AAAA", "forward"),
        ("github.api", "A", "forward"),
        ("tasks.com", "A", "forward"),
        (".", "NS", "forward"),
        ("localhost", "A", "127.0.0.1"),
        ("x.localhost", "AAAA", "::1"),
    ],
)
def test_what_a_client_of_one_network_gets(name: str, kind: str, expected: str) -> None:
    assert outcome(resolver(), name, kind) == expected


@pytest.mark.parametrize(
    ("network", "client", "name", "expected"),
    [
        (DB, "", "api", "10.2.0.2"),
        (DB, "10.2.0.99", "api", "10.2.0.2"),
        (DB, "", "store", "10.2.0.2"),  # the service, not its task with the same host name
        (DB, "", "api.web.mesh", "no name"),
        # on both networks: the first one first, whichever of their addresses they ask from
        (WEB, "10.1.0.50", "api", "10.1.0.2"),
        (DB, "10.2.0.50", "api", "10.1.0.2"),
        (DB, "10.2.0.51", "api", "10.2.0.2"),
        (WEB, "10.1.0.50", "store", "10.2.0.2"),
        (WEB, "10.1.0.50", "store.db.mesh", "10.2.0.2"),
        (DB, "10.2.0.50", "api.web.mesh", "10.1.0.2"),
        # the host knows full names of all networks, and nothing else
        (None, "", "api.web.mesh", "10.1.0.2"),
        (None, "", "store.db.mesh", "10.2.0.2"),
        (None, "", "api", "no name"),
        (None, "", "api.web", "forward"),
        (None, "", "h1.node.mesh", "192.0.2.1"),
        # a network that is not there
        ("gone", "", "api", "no name"),
        ("gone", "", "h1.node.mesh", "192.0.2.1"),
    ],
)
def test_who_sees_what(network: str | None, client: str, name: str, expected: str) -> None:
    assert outcome(resolver(), name, network=network, client=client) == expected


def test_the_host_finds_addresses_of_all_networks() -> None:
    assert outcome(resolver(), "2.0.2.10.in-addr.arpa", "PTR", None) == "store.db.mesh."


def test_case_is_kept_and_does_not_matter() -> None:
    made = resolver()
    view = made.view(WEB)
    for name in ("api", "aPi", "API", "tAsKs.aPi.WeB.mEsH", "nObOdY"):
        for _ in range(2):
            answer = made.udp(view, asked(name))
            assert isinstance(answer, bytes)
            record = dnslib.DNSRecord.parse(answer)
            assert str(record.q.qname) == name + "."
            assert all(str(rr.rname) == name + "." for rr in record.rr)
    assert len(view.hot) == 3  # one for each name, however spelled


def test_times_to_live() -> None:
    made = resolver()
    for name, ttl in (("api", 5), ("spread", 2), ("backend", 5)):
        answer = made.udp(made.view(WEB), asked(name))
        assert isinstance(answer, bytes)
        assert {rr.ttl for rr in dnslib.DNSRecord.parse(answer).rr} == {ttl}


def test_service_records_bring_addresses() -> None:
    made = resolver()
    answer = made.udp(made.view(WEB), asked("_http._tcp.api", "SRV"))
    assert isinstance(answer, bytes)
    assert [(str(rr.rname), str(rr.rdata)) for rr in dnslib.DNSRecord.parse(answer).ar] == [
        ("1.api.web.mesh.", "10.1.0.11")
    ]


def firsts(made: Resolver, name: str, turns: int = 200, *, edns: bool = False) -> list[str]:
    answers = [made.udp(made.view(WEB), asked(name, edns=edns)) for _ in range(turns)]
    return [str(dnslib.DNSRecord.parse(a).rr[0].rdata) for a in answers if isinstance(a, bytes)]


def test_tasks_are_handed_out_in_changing_order() -> None:
    many = ServiceNames("many", (), (), tuple(task(f"t{i}", i, f"10.1.1.{i}") for i in range(1, 6)))
    made = resolver(replace(PLAN, networks=(NetworkNames(WEB, "web", IPv4Address("10.1.0.1"), (many,)),)))
    assert len(set(firsts(made, "many"))) >= 4
    assert len(set(firsts(made, "tasks.many", edns=True))) >= 4


def test_tasks_of_this_node_come_first_where_asked() -> None:
    tasks = tuple(task(f"t{i}", i, f"10.1.1.{i}", local=i in (3, 4)) for i in range(1, 6))
    many = ServiceNames("many", (), (), tasks, local_first=True)
    made = resolver(replace(PLAN, networks=(NetworkNames(WEB, "web", IPv4Address("10.1.0.1"), (many,)),)))
    assert set(firsts(made, "many")) == {"10.1.1.3", "10.1.1.4"}
    assert outcome(made, "many") == " ".join(f"10.1.1.{i}" for i in range(1, 6))


@pytest.mark.parametrize(
    ("data", "rcode"),
    [
        (asked("api")[:-2] + b"\0\3", wire.REFUSED),  # class CH
        (asked("api", "AXFR"), wire.REFUSED),
        (asked("api", "IXFR"), wire.REFUSED),
        (asked("api")[:2] + b"\x20\0" + asked("api")[4:], wire.NOTIMP),
        (asked("api")[:4] + b"\0\2" + asked("api")[6:] + asked("api")[12:], wire.FORMERR),  # two questions
    ],
)
def test_questions_that_are_refused(data: bytes, rcode: int) -> None:
    made = resolver()
    for answer in (made.udp(made.view(WEB), data), made.tcp(made.view(WEB), data)):
        assert isinstance(answer, bytes)
        assert answer[3] & 15 == rcode


def test_an_unknown_version_of_edns() -> None:
    record = dnslib.DNSRecord.question("api")
    record.add_ar(dnslib.EDNS0(version=1))
    made = resolver()
    answer = made.udp(made.view(WEB), bytes(record.pack()))
    assert isinstance(answer, bytes)
    assert dnslib.DNSRecord.parse(answer).ar[0].ttl >> 24 == wire.BADVERS >> 4


def test_mutated_packets_neither_raise_nor_grow() -> None:
    made, rng = resolver(), random.Random(3)
    view = made.view(WEB)
    seeds = [asked("api"), asked("tasks.spread", edns=True), asked("_http._tcp.api", "SRV"), asked("a.org", edns=True)]
    for _ in range(100_000):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 2, 0x3F, 0x40, 0xC0, 0xFF, rng.randrange(256)))
        answer = made.udp(view, bytes(data))
        if isinstance(answer, bytes):
            assert answer[:2] == data[:2]
            assert answer[2] & 0x80
            assert len(answer) <= 1232
    assert len(view.hot) < 20_000, "bounded, however many are asked"
    assert sum(map(len, view.rotations.values())) < 100


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_answers_after_changes_are_those_of_a_fresh_start(data: st.DataObject) -> None:
    """Any order of changes, with answers packed in between, ends in what a new process would answer."""
    names = ("api", "spread", "silent", "six")
    services = {s.name: s for s in (API, SPREAD, SILENT, SIX)}
    made = resolver()
    names_a = ("api", "backend", "tasks.api", "1.api", "9.api", "t1", "api.web.mesh", "api.web", "spread", "x.spread")
    questions = [(name, "A") for name in names_a]
    questions += [("backend", "AAAA"), ("_http._tcp.api", "SRV")]
    questions += [(f"{last}.0.1.10.in-addr.arpa", "PTR") for last in (2, 11)]
    for _ in range(data.draw(st.integers(1, 8))):
        name = data.draw(st.sampled_from(names))
        if data.draw(st.booleans()):
            services.pop(name, None)
            made.drop_service(WEB, name)
        else:
            base = {s.name: s for s in (API, SPREAD, SILENT, SIX)}[name]
            ready = data.draw(st.booleans())
            tasks = tuple(replace(t, ready=ready, slot=data.draw(st.integers(0, 2))) for t in base.tasks)
            services[name] = replace(base, tasks=tasks, aliases=data.draw(st.sampled_from([(), ("backend",), ("x",)])))
            made.put_service(WEB, services[name])
        networks = (replace(PLAN.networks[0], services=tuple(services.values())), PLAN.networks[1])
        fresh = resolver(replace(PLAN, networks=networks))
        for question in questions:
            assert outcome(made, *question) == outcome(fresh, *question), question


def test_one_client_cannot_make_views_or_answers_without_end() -> None:
    made = resolver()
    view = made.view(WEB)
    view.hot.generation_max = 100
    for i in range(1000):
        made.udp(view, asked(f"nobody{i}"))
    assert len(view.hot) <= 200


@pytest.mark.parametrize(
    ("name", "network", "client", "outcome_", "answers"),
    [
        ("api", WEB, None, "answer", ("10.1.0.2",)),
        ("api", DB, "10.2.0.50", "answer", ("10.1.0.2",)),
        ("silent", WEB, None, "no data", ()),
        ("nobody", WEB, None, "no such name", ()),
        ("example.com", WEB, None, "forwarded", ()),
    ],
)
def test_explanations(name: str, network: str, client: str | None, outcome_: str, answers: tuple[str, ...]) -> None:
    address: Address | None = ip_address(client) if client else None
    said = resolver().explain(name, wire.A, network, address)
    assert (said.outcome, said.answers) == (outcome_, answers)
    assert said.why


def test_a_dump_shows_every_name_with_its_records() -> None:
    lines = list(dump(resolver().zone))
    assert lines == sorted(lines, key=lambda line: (line.network, line.name))
    shown = {(line.network, line.name, line.kind, line.data) for line in lines}
    assert ("web", "api", "A", "10.1.0.2") in shown
    assert ("web", "tasks.spread", "A", "10.1.0.15") in shown
    assert ("web", "_http._tcp.api", "SRV", "0 1 8080 1.api.web.mesh") in shown
    assert ("web", "2.0.1.10.in-addr.arpa", "PTR", "api.web.mesh") in shown
    assert ("web", "silent", "", "") in shown
    assert {line.why for line in lines if line.name == "2.api"} == {'slot 2 of service "api", not ready'}


def test_an_explanation_names_what_a_user_knows() -> None:
    said = resolver().explain("tasks.api", wire.A, DB, IPv4Address("10.2.0.50"))
    assert said.view == "web, db"
    assert said.why == ('found on network "web"', 'tasks of service "api": 1 of 2 are ready')
