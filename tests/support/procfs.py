"""What /proc says of this process."""

from __future__ import annotations

from pathlib import Path


def vm_flags(address: int) -> list[str]:
    """Return VmFlags of the mapping with an address."""
    there = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *fields = line.split()
        if "-" in name:
            begin, end = (int(part, 16) for part in name.split("-"))
            there = begin <= address < end
        elif name == "VmFlags:" and there:
            return fields
    raise LookupError(hex(address))
