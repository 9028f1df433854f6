"""TLS as this cluster wants it: version 1.3, both sides with a certificate, identity by the URI in it. No addresses.

`Credentials` is what a node has in memory of its own; contexts are made of it anew for each use, so a renewed
certificate or another root counts from the next connection on.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from typing import cast

from cryptography import x509

from control.ca.greeting import ALPN
from control.ca.names import Holder, holder_of
from control.ca.root import load_certificates


class Locked(Exception):
    """There is a key, but it cannot be had (control.vault)."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """PEM: a private key, its certificate with what links it to the roots, and the roots that are believed."""

    key: bytes
    chain: bytes
    roots: bytes

    @property
    def certificate(self) -> x509.Certificate:
        return load_certificates(self.chain)[0]


def server_context(credentials: Credentials) -> ssl.SSLContext:
    """For managers that are called by nodes, over connections of our own (Raft's)."""
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=credentials.roots.decode())
    load_into(context, credentials)
    return context


def client_context(credentials: Credentials) -> ssl.SSLContext:
    """For calling them. The caller compares who answers (`peer_of`) with whom it wants: names of hosts say nothing."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=credentials.roots.decode())
    load_into(context, credentials)
    return context


def enrolment_server_context(credentials: Credentials) -> ssl.SSLContext:
    """For those who have no certificate yet."""
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([ALPN])
    load_into(context, credentials)
    return context


def enrolment_client_context() -> ssl.SSLContext:
    """For a newcomer: it checks the certificate itself, before it says anything (`control.ca.greeting`)."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([ALPN])
    return context


def peer_of(connection: ssl.SSLObject) -> Holder | None:
    """Whom the other side's certificate names; TLS has verified it if the context asks for that."""
    found = connection.getpeercert() or {}
    names = cast("tuple[tuple[str, str], ...]", found.get("subjectAltName", ()))
    return holder_of([value for kind, value in names if kind == "URI"])


def _context(side: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_COMPRESSION
    if side is ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # a resumed session would skip the certificate, which may be worth nothing by then
    return context


def load_into(context: ssl.SSLContext, credentials: Credentials) -> None:
    """Show this certificate. The library reads certificates from files only: from one that never has a name."""
    descriptor = os.memfd_create("mesh-tls", os.MFD_CLOEXEC)
    try:
        data = memoryview(credentials.key + credentials.chain)
        while data:
            data = data[os.write(descriptor, data) :]
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
