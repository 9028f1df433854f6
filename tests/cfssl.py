"""A CA over HTTPS that signs as CFSSL does, with what goes wrong at such places. Also a program, for hosts of a lab."""

from __future__ import annotations

import ipaddress
import json
import ssl
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from control.ca.root import key_pem, load_certificate, load_key, new_key, pem

USAGES = {
    "manager": [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH],
    **{role: [ExtendedKeyUsageOID.CLIENT_AUTH] for role in ("worker", "viewer", "operator", "admin")},
}


def new_root(name: str = "Example Corp") -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key, now = new_key(), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number())
    made = made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=365))
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return made.sign(key, hashes.SHA256()), key


class Signer:
    """Signs whatever it is asked to. `twist` is changed by tests."""

    def __init__(self, root: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.root, self.key = root, key
        self.asked: list[dict[str, object]] = []
        self.clients: list[str] = []  # the URIs of those who have shown a certificate
        self.twist = ""

    def leaf(
        self, public: ec.EllipticCurvePublicKey, names: list[x509.GeneralName], subject: str, profile: str
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        made = x509.CertificateBuilder().issuer_name(self.root.subject).public_key(public)
        made = made.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        made = made.serial_number(x509.random_serial_number())
        made = made.not_valid_before(now - timedelta(minutes=5)).not_valid_after(now + timedelta(hours=8))
        made = made.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        made = made.add_extension(x509.ExtendedKeyUsage(USAGES[profile]), critical=False)
        made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
        issuer = self.root.public_key()
        assert isinstance(issuer, ec.EllipticCurvePublicKey)
        made = made.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
        return made.sign(self.key, hashes.SHA256())

    def answer(self, body: bytes) -> bytes:
        asked = json.loads(body)
        self.asked.append(asked)
        match self.twist:
            case "refuse":
                return b'{"success":false,"result":null,"errors":[{"code":1,"message":"policy says no"}],"messages":[]}'
            case "junk":
                return b"<html>"
            case "long":
                return b" " * (1 << 20)
        request = x509.load_pem_x509_csr(asked["request"].encode())
        public = request.public_key() if self.twist != "key" else new_key().public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        hosts = [host.replace("worker", "manager") if self.twist == "role" else host for host in asked["hosts"]]
        names = [x509.UniformResourceIdentifier(h) if "://" in h else x509.DNSName(h) for h in hosts]
        profile = "worker" if self.twist == "profile" else asked["profile"]
        signer = Signer(*new_root()) if self.twist == "root" else self
        made = signer.leaf(public, names, asked["subject"]["CN"], profile)
        result = {"certificate": pem(made).decode()}
        return json.dumps({"success": True, "result": result, "errors": [], "messages": []}).encode()

    @contextmanager
    def serve(self, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
        """The URL while it serves."""
        key, signer = new_key(), self
        certificate = self.leaf(key.public_key(), [x509.IPAddress(ipaddress.ip_address(host))], host, "manager")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(cadata=pem(self.root).decode())
        with tempfile.NamedTemporaryFile() as file:
            file.write(key_pem(key) + pem(certificate))
            file.flush()
            context.load_cert_chain(file.name)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                shown = self.connection.getpeercert() or {}  # type: ignore[attr-defined]
                signer.clients += [value for kind, value in shown.get("subjectAltName", ()) if kind == "URI"]
                answer = signer.answer(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200 if self.path == "/api/v1/cfssl/sign" else 404)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """Nothing is logged."""

        server = ThreadingHTTPServer((host, port), Handler)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"https://{host}:{server.server_address[1]}/api/v1/cfssl/sign"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def main() -> None:
    """`python tests/cfssl.py ROOT KEY ADDRESS`: serve until standard input ends."""
    root, key = load_certificate(Path(sys.argv[1]).read_bytes()), load_key(Path(sys.argv[2]).read_bytes())
    with Signer(root, key).serve(sys.argv[3]) as url:
        sys.stdout.write(url + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
