"""`python -m gossip.agent_process FLAGS`: the stand-alone agent on real sockets."""

from __future__ import annotations

import sys

from gossip.agent_main import main
from gossip.agent_network import socket_network

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], socket_network))
