"""Membership and liveness of nodes, on the wire of memberlist and Serf. Not built yet: liveness is the dispatcher's."""
