"""Labels, environment, filters, attachments, ports."""

from __future__ import annotations

import pytest

from control.model import NamedPort, PortSpec
from mesh.cli.text import TextError
from mesh.cli.text.pairs import (
    Attachment,
    parse_attachment,
    parse_env,
    parse_env_file,
    parse_filters,
    parse_labels,
)
from mesh.cli.text.port import format_port, parse_named_port, parse_publish


def test_labels() -> None:
    assert parse_labels(["zone=a", "ssd", "expr=a=b", "zone=c"]) == {"zone": "c", "ssd": "", "expr": "a=b"}
    with pytest.raises(TextError, match=r'^"=x" is not a label: such as zone=a$'):
        parse_labels(["=x"])


def test_environment_takes_values_of_the_caller() -> None:
    assert parse_env(["A=1", "B=", "HOME", "NOT"], {"HOME": "/root"}) == {"A": "1", "B": "", "HOME": "/root"}
    for bad in ("=1", " A=1", ""):
        with pytest.raises(TextError):
            parse_env([bad], {})


def test_environment_files() -> None:
    content = "\ufeff# comment\nA=1\n\n  B = spaced\nHOME\nC=x#y\r\n".replace("B = ", "B= ")
    assert parse_env_file("f", content, {"HOME": "/root"}) == {"A": "1", "B": " spaced", "HOME": "/root", "C": "x#y"}
    with pytest.raises(TextError) as caught:
        parse_env_file("my.env", "A=1\n=2", {})
    assert str(caught.value) == 'my.env, line 2: "=2" is not an environment variable: such as NAME=value'


def test_filters() -> None:
    assert parse_filters(["name=a", "name=b", "label=zone=a"]) == {"name": ["a", "b"], "label": ["zone=a"]}
    for bad in ("name", "name=", "=x", ""):
        with pytest.raises(TextError, match="is not a filter: such as name=api"):
            parse_filters([bad])


@pytest.mark.parametrize(
    ("text", "attachment"),
    [
        ("web", Attachment("web")),
        ("name=web", Attachment("web")),
        ("name=web,alias=db", Attachment("web", ("db",))),
        ("alias=a,name=web,alias=b", Attachment("web", ("a", "b"))),
    ],
)
def test_attachments(text: str, attachment: Attachment) -> None:
    assert parse_attachment(text) == attachment


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", '"" is not a network: such as web, or name=web,alias=db'),
        ("web,other", '"web,other" is not a network: such as web, or name=web,alias=db'),
        ("alias=a", 'network "alias=a" has no name='),
        (
            "name=web,ip=1",
            'network "name=web,ip=1": "ip=1" is not understood: there are name=, and alias= repeatedly',
        ),
        (
            "name=web,name=x",
            'network "name=web,name=x": "name=x" is not understood: there are name=, and alias= repeatedly',
        ),
    ],
)
def test_bad_attachments(text: str, sentence: str) -> None:
    with pytest.raises(TextError) as caught:
        parse_attachment(text)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("8080:80", [PortSpec(target=80, published=8080)]),
        ("8080:80/tcp", [PortSpec(target=80, published=8080)]),
        ("53:53/UDP", [PortSpec(target=53, published=53, protocol="udp")]),
        ("80", [PortSpec(target=80)]),
        ("80/sctp", [PortSpec(target=80, protocol="sctp")]),
        ("8080-8081:80-81", [PortSpec(target=80, published=8080), PortSpec(target=81, published=8081)]),
        ("7000-7001", [PortSpec(target=7000), PortSpec(target=7001)]),
        ("published=8080,target=80", [PortSpec(target=80, published=8080)]),
        ("target=80", [PortSpec(target=80)]),
        ("192.0.2.1:8080:80", [PortSpec(target=80, published=8080, address="192.0.2.1")]),
        ("[2001:DB8::1]:8080:80/udp", [PortSpec(target=80, published=8080, protocol="udp", address="2001:db8::1")]),
        ("192.0.2.1::80", [PortSpec(target=80, address="192.0.2.1")]),
        (
            "published=80,target=80,address=192.0.2.1,constraint=node.labels.edge==yes,constraint=node.hostname!=h1",
            [
                PortSpec(
                    target=80,
                    published=80,
                    address="192.0.2.1",
                    constraints=("node.labels.edge==yes", "node.hostname!=h1"),
                )
            ],
        ),
        (
            "published=5353,target=53,protocol=udp,mode=host",
            [PortSpec(target=53, published=5353, protocol="udp", mode="host")],
        ),
    ],
)
def test_ports(text: str, ports: list[PortSpec]) -> None:
    assert parse_publish(text) == tuple(ports)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", '"" is not a port to publish: such as 8080:80, or 8080:80/udp'),
        ("http", '"http" is not a port to publish: such as 8080:80, or 8080:80/udp'),
        (":80", '":80" is not a port to publish: such as 8080:80, or 8080:80/udp'),
        ("80:", '"80:" is not a port to publish: such as 8080:80, or 8080:80/udp'),
        ("8080:80/icmp", 'port "8080:80/icmp": the protocol must be tcp, udp or sctp'),
        ("70000:80", 'port "70000:80": ports are 1 to 65535, in rising order'),
        ("0:80", 'port "0:80": ports are 1 to 65535, in rising order'),
        ("81-80", 'port "81-80": ports are 1 to 65535, in rising order'),
        ("1-300", 'port "1-300": a range has at most 256 ports'),
        ("80-82:80-81", 'port "80-82:80-81": both ranges must have the same length'),
        ("h1:80:80", 'port "h1:80:80": "h1" is not an address of a node'),
        ("target=80,address=h1", 'port "target=80,address=h1": "h1" is not an address of a node'),
        ("published=80", 'port "published=80": target=PORT is missing'),
        ("target=0", 'port "target=0": target must be 1 to 65535, not "0"'),
        ("target=80,published=x", 'port "target=80,published=x": published must be 0 to 65535, not "x"'),
        ("target=80,mode=any", 'port "target=80,mode=any": the mode must be ingress or host'),
        ("target=80,protocol=x", 'port "target=80,protocol=x": the protocol must be tcp, udp or sctp'),
        ("target=80,target=81", 'port "target=80,target=81": target is given twice'),
        (
            "target=80,host=1",
            (
                'port "target=80,host=1": "host=1" is not understood: '
                "there are published, target, protocol, mode, address, constraint"
            ),
        ),
    ],
)
def test_bad_ports(text: str, sentence: str) -> None:
    with pytest.raises(TextError) as caught:
        parse_publish(text)
    assert str(caught.value) == sentence


def test_ports_as_listed() -> None:
    assert format_port(PortSpec(target=53, published=5353, protocol="udp")) == "*:5353->53/udp"


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("http=8080", NamedPort(name="http", port=8080)),
        ("dns=53/UDP", NamedPort(name="dns", port=53, protocol="udp")),
    ],
)
def test_named_ports(text: str, port: NamedPort) -> None:
    assert parse_named_port(text) == port


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("http", '"http" is not a named port: such as http=8080, or dns=53/udp'),
        ("=80", '"=80" is not a named port: such as http=8080, or dns=53/udp'),
        ("http=x", 'port "http=x": the port must be 1 to 65535, not "x"'),
        ("http=80/icmp", 'port "http=80/icmp": the protocol must be tcp, udp or sctp'),
    ],
)
def test_bad_named_ports(text: str, sentence: str) -> None:
    with pytest.raises(TextError) as caught:
        parse_named_port(text)
    assert str(caught.value) == sentence
