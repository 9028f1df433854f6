"""The Serf layer on SWIM: intents, events, queries, keys, conflicts. A core without I/O; `core.SerfCore` is the whole.

`pack` and `messages` are the bytes; `clock` tells old from new; `roster` is who is there by Serf's words; `queries` are
those asked here; `keys` and `conflict` are the questions that nodes ask each other about themselves. What is said to be
Serf's is that of hashicorp/serf 0.9 and 0.10 (serf/serf.go, delegate.go, internal_query.go), written anew.
"""
