"""Tries what the kernel can do, in a network namespace of its own that goes away with this process. Prints JSON.

Run as `python -m mesh.doctor.probe`, as root: what a kernel can do is found out by doing it (a module may be missing,
not loadable, or forbidden), and a process of its own leaves nothing behind however it ends.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

_CLONE_NEWNET = 0x40000000
_NETLINK_NETFILTER = 12
_IPPROTO_SCTP = 132

LINKS: Mapping[str, Mapping[str, Any]] = {
    "veth": {"kind": "veth", "peer": {"ifname": "probe1"}},
    "vxlan": {"kind": "vxlan", "vxlan_id": 1, "vxlan_port": 4789},
}


_TABLE = """
table inet probe {
    map to { type ipv4_addr : verdict; }
    chain nat { type nat hook prerouting priority 0; ip daddr vmap @to; }
    chain route { type filter hook forward priority 0; ct mark set 1; }
}
"""


def _try(attempt: Callable[[], object]) -> str:
    """ "" when it works, else why not."""
    try:
        attempt()
    except NetlinkError as error:
        return os.strerror(error.code)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _link(arguments: Mapping[str, Any]) -> None:
    with IPRoute() as route:
        route.link("add", ifname="probe0", **arguments)
        route.link("del", index=route.link_lookup(ifname="probe0")[0])


def _nftables() -> None:
    _nft(_TABLE)


def _nft(text: str) -> None:
    from mesh.vip.nft import VipError, find  # noqa: PLC0415 - what it raises at import would be a finding, too

    try:
        nft = find()
        nft.run(text)
        nft.release()
    except VipError as error:
        raise OSError(errno.EIO, str(error)) from error


def _flowtable() -> None:
    from mesh.vip.flowtable import TRIALS  # noqa: PLC0415 - as above

    for text in TRIALS:
        _nft(text)


def _ipvs() -> None:
    """The generic netlink family is there when the module is, or can be loaded."""
    from pyroute2 import IPVS  # noqa: PLC0415 - needed here only

    with IPVS() as ipvs:
        ipvs.service("dump")


def _wireguard() -> None:
    from overlay.wireguard import kernel_lacks  # noqa: PLC0415 - as above

    if reason := kernel_lacks():
        raise OSError(errno.ENOENT, reason)


def _sctp() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM, _IPPROTO_SCTP).close()


def main() -> None:
    """Enter a new namespace, try everything, print `{"veth": "", "ipvs": "No such file or directory", ...}`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno())
        json.dump({"namespaces": reason}, sys.stdout)
        return
    found = {"namespaces": ""}
    found |= {name: _try(lambda a=arguments: _link(a)) for name, arguments in LINKS.items()}  # type: ignore[misc]
    found |= {"nftables": _try(_nftables), "flowtable": _try(_flowtable), "ipvs": _try(_ipvs)}
    found |= {"sctp": _try(_sctp), "wireguard": _try(_wireguard)}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
