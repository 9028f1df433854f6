"""Which client has had enough for the moment. Pure and bounded.

Asked only under pressure (a socket with a full batch waiting), for the batch as a whole: who alone loads the server
may have all of it, but with others around each gets its share first. What is over the share is dropped, not refused:
that is cheapest, and the client asks again.

Others are noticed only when their questions get in, and a client that asks for more than there is keeps the kernel's
buffer full, so that theirs are lost before. So one that is alone, too, is held to its share while the server is
*behind*: until the buffer has been empty once, which at the price of a dropped question is soon.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

# Shares are counted anew this often: a client over its share waits no longer than a moment.
WINDOW_S = 0.1
# Questions of one client in a window. A tenth of what a server of one core answers in it, so that ten clients that all
# want more than they can get share the server evenly.
SHARE = 1500
# Behind: the buffer was not found empty for this long. It fills in twice that time at a million questions a second
# (8 MiB, 768 bytes a question), and a burst that a client may well send is answered in it.
BEHIND_S = 0.005
# Clients counted in one window. A network has fewer tasks on one node; beyond that, counting begins anew.
CLIENTS_MAX = 4096

Client = int | bytes  # an address, as the shell tells it quickest


class Fairness:
    """Counts of one socket's clients."""

    __slots__ = ("_counts", "_full_since_s", "_others", "_until_s")

    def __init__(self) -> None:
        self._counts: dict[Client, int] = {}
        self._others = False  # there was more than one client in the window before
        self._until_s = 0.0
        self._full_since_s: float | None = None

    def emptied(self) -> None:
        """There was no full batch: nothing waits any more."""
        self._full_since_s = None

    def over(self, clients: Sequence[Client], now_s: float) -> set[Client]:
        """Count a full batch of questions by who asked. Those who have had their share for now; mostly nobody."""
        if self._full_since_s is None:
            self._full_since_s = now_s
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
        behind = now_s - self._full_since_s > BEHIND_S
        return over if behind or self._others or len(counts) > 1 else set()
