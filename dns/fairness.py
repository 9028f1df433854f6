"""Which client has had enough for the moment. Pure and bounded.

Asked only under pressure (a socket with a full batch waiting), for the batch as a whole: who alone loads the server
may have all of it, but with others around each gets its share first. What is over the share is dropped, not refused:
that is cheapest, and the client asks again.

Others are noticed only when their questions get in, and a client that asks for more than there is keeps the kernel's
buffer full, so that theirs are lost before. So while the server is *behind*, with that buffer filling up, one that is
alone, too, is held to its share: at the price of a dropped question the buffer is soon emptier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

# Shares are counted anew this often: a client over its share waits no longer than a moment.
WINDOW_S = 0.1
# Questions of one client in a window. A tenth of what a server of one core answers in it, so that ten clients that all
# want more than they can get share the server evenly.
SHARE = 1500
# Behind: this part of the buffer is full. A client that waits for its answers before it asks on has thousands of
# questions under way by then; less would be too near to what the kernel counts too much (a quarter: it is late).
BEHIND = 0.5
# Clients counted in one window. A network has fewer tasks on one node; beyond that, counting begins anew.
CLIENTS_MAX = 4096

Client = int | bytes  # an address, as the shell tells it quickest


class Fairness:
    """Counts of one socket's clients."""

    __slots__ = ("_counts", "_others", "_until_s")

    def __init__(self) -> None:
        self._counts: dict[Client, int] = {}
        self._others = False  # there was more than one client in the window before
        self._until_s = 0.0

    def over(self, clients: Sequence[Client], now_s: float, *, behind: bool) -> set[Client]:
        """Count a full batch of questions by who asked. Those who have had their share for now; mostly nobody."""
        if now_s >= self._until_s or len(self._counts) >= CLIENTS_MAX:
            self._others = len(self._counts) > 1
            self._counts.clear()
            self._until_s = now_s + WINDOW_S
        counts = self._counts
        over: set[Client] = set()
        for client, asked in Counter(clients).items():
            before = counts.get(client, 0)
            counts[client] = before + asked
            if before + asked > SHARE:
                over.add(client)
        return over if behind or self._others or len(counts) > 1 else set()
