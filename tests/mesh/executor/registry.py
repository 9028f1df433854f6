"""A registry for tests that has one image: `registry.py PORT ARCHIVE`, ARCHIVE being the tar file of its one layer.

The read half of the registry protocol (version 2, image manifests of schema 2), as much as an engine asks for.
Everything is called "test/box"; the tag "broken" names an image whose layer is not what its digest says.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Image:
    """One image of one layer, by digest."""

    def __init__(self, archive: bytes, machine: str) -> None:
        layer = gzip.compress(archive, 1, mtime=0)
        config = json.dumps(
            {
                "architecture": machine,
                "os": "linux",
                "config": {"Cmd": ["true"]},
                "rootfs": {"type": "layers", "diff_ids": [digest(archive)]},
                "history": [{"created": "2026-01-01T00:00:00Z"}],
            }
        ).encode()
        parts = {"config": config, "layer": layer}
        sizes = {name: {"size": len(data), "digest": digest(data)} for name, data in parts.items()}
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {"mediaType": "application/vnd.docker.container.image.v1+json", **sizes["config"]},
                "layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", **sizes["layer"]}],
            }
        ).encode()
        self.blobs = {digest(data): data for data in parts.values()}
        self.layer = digest(layer)


def main() -> None:
    """Serve until killed."""
    archive = Path(sys.argv[2]).read_bytes()
    whole, broken = Image(archive, "amd64"), Image(archive + b"\0" * 1024, "amd64")
    blobs = {**whole.blobs, **broken.blobs, broken.layer: b"something else"}
    manifests = {"1": whole.manifest, digest(whole.manifest): whole.manifest, "broken": broken.manifest}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            kind, _, name = self.path.removeprefix("/v2/test/box/").partition("/")
            found = {"manifests": manifests, "blobs": blobs}.get(kind, {}).get(name)
            data = b"{}" if self.path == "/v2/" else found
            self.send_response(200 if data is not None else 404)
            if kind == "manifests" and data is not None:
                self.send_header("Content-Type", MANIFEST)
                self.send_header("Docker-Content-Digest", digest(data))
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data or b"")

        do_HEAD = do_GET

    print(digest(whole.manifest), flush=True)
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()


if __name__ == "__main__":
    main()
