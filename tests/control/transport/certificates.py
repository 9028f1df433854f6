"""Certificates of nodes, and contexts with them, by openssl."""

import ssl
import subprocess
from types import SimpleNamespace


def certificate(directory, ca, name):
    """By openssl: an authority, or a node's certificate by it."""

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key"]
    if ca is None:
        openssl("req", "-x509", *key, "-out", f"{name}.crt", "-subj", f"/CN={name}", "-days", "2")
        return
    openssl("req", *key, "-out", f"{name}.csr", "-subj", f"/CN={name}")
    signed = ["-CA", f"{ca}.crt", "-CAkey", f"{ca}.key", "-CAcreateserial", "-days", "2"]
    openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.crt")


def node_of(ssl_object):
    subject = dict(pair for rdn in ssl_object.getpeercert()["subject"] for pair in rdn)
    return subject.get("commonName")


def authority(directory):
    """A function that gives the contexts of a node, by default of this authority."""
    certificate(directory, None, "ca")
    certificate(directory, None, "otherca")

    def one(name, ca="ca"):
        if not (directory / f"{name}.crt").exists():
            certificate(directory, ca, name)
        contexts = []
        for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
            context = ssl.SSLContext(protocol)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.check_hostname = False
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(directory / "ca.crt")
            context.load_cert_chain(directory / f"{name}.crt", directory / f"{name}.key")
            contexts.append(context)
        return SimpleNamespace(server=contexts[0], client=contexts[1], node_of=node_of)

    return one
