"""What others' tools find at the ports of a manager: nmap (ssl-enum-ciphers) and testssl.sh, from a machine outside.

Debian's packages nmap and testssl.sh; see docs/security-attempts.md for what is tried beyond what scanners know.
"""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mesh.lab.lab import CLIENT, Lab
from tests.e2e.conftest import joined

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(600)]
API, DOOR, RAFT = 7377, 7376, 7378
TIMEOUT_S = 240.0

# testssl.sh: what can be wrong with TLS 1.3; it asks for the bugs of versions before only where there are any.
SCANS = ("--protocols", "--std", "--renegotiation", "--compression")
NOT_OFFERED = (
    *("SSLv2", "SSLv3", "TLS1", "TLS1_1", "TLS1_2"),
    *("cipherlist_NULL", "cipherlist_aNULL", "cipherlist_EXPORT", "cipherlist_LOW", "cipherlist_3DES_IDEA"),
    "cipherlist_AVERAGE",
)
SAFE = ("secure_renego", "secure_client_renego", "CRIME_TLS")
SUITES = {f"TLS_AKE_WITH_{name}" for name in ("AES_128_GCM_SHA256", "AES_256_GCM_SHA384", "CHACHA20_POLY1305_SHA256")}


def test_what_scanners_find(bare_lab: Lab, tmp_path: Path) -> None:
    cluster = joined(bare_lab, "500ms")
    host = bare_lab.address("h1")
    found = enumerated(bare_lab, host, tmp_path / "nmap.xml")
    assert found == {port: {"TLSv1.3": SUITES} for port in (API, DOOR, RAFT)}
    for port in (API, DOOR, RAFT):
        findings = scanned(bare_lab, f"{host}:{port}", tmp_path / f"{port}.json")
        assert findings["TLS1_3"] == ("OK", "offered with final"), port
        assert {name: findings[name][1] for name in NOT_OFFERED} == dict.fromkeys(NOT_OFFERED, "not offered"), port
        assert {name: findings[name][0] for name in SAFE} == dict.fromkeys(SAFE, "OK"), port
        assert [name for name, (severity, _) in findings.items() if severity in BAD] == [], port
    cluster.until("everybody is there as before", cluster.ready)


BAD = ("LOW", "MEDIUM", "HIGH", "CRITICAL")  # a warning says that it gets no further without a certificate


def enumerated(lab: Lab, host: str, out: Path) -> dict[int, dict[str, set[str]]]:
    """Versions and their ciphers by port, as nmap has it."""
    ports = ",".join(map(str, (API, DOOR, RAFT)))
    command = ["nmap", "-n", "-Pn", "-p", ports, "--script", "+ssl-enum-ciphers", "-oX", str(out), host]
    done = lab.exec(CLIENT, command, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    root = ElementTree.parse(out).getroot()
    return {
        int(port.attrib["portid"]): {
            version.attrib["key"]: {
                row.text or "" for row in version.iterfind("./table[@key='ciphers']/table/elem[@key='name']")
            }
            for version in port.iterfind("./script[@id='ssl-enum-ciphers']/table")
        }
        for port in root.iter("port")
    }


def scanned(lab: Lab, address: str, out: Path) -> dict[str, tuple[str, str]]:
    """Findings of testssl.sh: severity and sentence. From the other host, which has no name servers: the tool asks its
    OpenSSL what it knows by connecting to a name that there is not, some fifty times.
    """
    command = ["testssl", "--quiet", "--color", "0", "--warnings", "off", "--nodns", "none", *SCANS]
    done = lab.exec("h2", [*command, "--jsonfile", str(out), address], timeout=TIMEOUT_S)
    assert out.exists(), done.stdout + done.stderr
    return {row["id"]: (row["severity"], row["finding"]) for row in json.loads(out.read_text())}
