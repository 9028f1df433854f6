"""The suite in here is for the virtual machine: without IPVS in the kernel there is nothing to collect."""

from __future__ import annotations

import os

collect_ignore = [] if "MESH_VM" in os.environ else ["suite"]
