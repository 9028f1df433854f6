"""The executor "docker": containers of a Docker Engine on this machine."""
