"""Which client has had enough for the moment. Pure and bounded.

Asked only under pressure (a socket with a full batch waiting): who alone loads the server may have all of it, but with
others around each gets its share first. What is over the share is dropped, not refused: that is cheapest, and the
client asks again.
"""

from __future__ import annotations

# Shares are counted anew this often: a client over its share waits no longer than a moment.
WINDOW_S = 0.1
# Questions of one client in a window. A tenth of what a server of one core answers in it, so that ten clients that all
# want more than they can get share the server evenly.
SHARE = 1500
# Clients counted in one window. A network has fewer tasks on one node; beyond that, counting begins anew.
CLIENTS_MAX = 4096


class Fairness:
    """Counts of one socket's clients."""

    __slots__ = ("_counts", "_others", "_until_s", "dropped")

    def __init__(self) -> None:
        self._counts: dict[bytes, int] = {}
        self._others = False  # there was more than one client in the window before
        self._until_s = 0.0
        self.dropped = 0

    def allow(self, client: bytes, now_s: float) -> bool:
        """Count a question. False: this client has had its share while others wait."""
        if now_s >= self._until_s or len(self._counts) >= CLIENTS_MAX:
            self._others = len(self._counts) > 1
            self._counts.clear()
            self._until_s = now_s + WINDOW_S
        count = self._counts[client] = self._counts.get(client, 0) + 1
        if count > SHARE and (self._others or len(self._counts) > 1):
            self.dropped += 1
            return False
        return True
