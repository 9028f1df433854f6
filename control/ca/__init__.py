"""The cluster's certificate authority: who is who, said by certificates.

Pure: `names` (what a certificate says), `root` (what signs), `verify` (whether to believe one), `requests` (CSRs),
`rotation` (from one root to the next), `schedule` (when to renew), `admission` (how many may ask). With files and
sockets: `disk` (a node's own key and certificate), `contexts` (TLS), `enrolment` (how a newcomer gets its first).
"""
