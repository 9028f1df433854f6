"""The `mesh` command: one file per noun, which talk to the daemon's local socket.

`text` reads and writes what users type and see, `show` turns objects into rows; both are pure. Nothing but click is
imported before a command runs, so that help and completion are quick.
"""
