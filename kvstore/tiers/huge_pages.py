"""Huge pages for shared memory: whether this machine grants them, how many it gave, and why it did not.

Two kinds, both of 2 MiB here: those an operator reserved (vm.nr_hugepages), and transparent ones, which a memfd gets
for the asking where /sys/kernel/mm/transparent_hugepage/shmem_enabled allows it. A first touch costs half, and a
worker's page tables 1/512.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from contextlib import suppress
from pathlib import Path

HUGE_PAGE_BYTES = 2 << 20
_RESERVED = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
_TRANSPARENT = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_SMAPS = Path("/proc/self/smaps")
_GRANTING = ("always", "within_size", "advise")


def free_huge_pages() -> int:
    """Reserved ones that nobody has."""
    return _reserved("free_hugepages")


def asks_for_huge_pages() -> bool:
    """Whether shared memory gets transparent huge pages for the asking on this machine."""
    return _transparent_mode() in _GRANTING


def transparent_bytes(memory: mmap.mmap) -> int:
    """How much of a shared mapping lies in transparent huge pages. The kernel gives fewer where memory is in pieces.

    Reads the process's list of mappings, some ms a GiB in small pages.
    """
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    with suppress(OSError), _SMAPS.open() as lines:
        inside = False
        for line in lines:
            head = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
            if head is not None:
                inside = int(head[1], 16) <= start < int(head[2], 16)
            elif inside and line.startswith("ShmemPmdMapped:"):
                return int(line.split()[1]) << 10
    return 0


def why_no_huge_pages(region_bytes: int) -> str:
    """What an operator could change, in a few words, where regions of so many bytes got none."""
    mode, reserved = _transparent_mode(), _reserved("nr_hugepages")
    if mode not in _GRANTING and not reserved:
        return f"shmem_enabled is {mode}, vm.nr_hugepages is 0"
    if region_bytes < HUGE_PAGE_BYTES:
        return "a region of the host tier, 1/64 of it, is smaller than one"
    if mode not in _GRANTING:
        return f"shmem_enabled is {mode}, vm.nr_hugepages is {reserved}, {free_huge_pages()} of them free"
    return "the machine's memory is in pieces too small for them"


def _reserved(name: str) -> int:
    with suppress(OSError, ValueError):
        return int((_RESERVED / name).read_text())
    return 0


def _transparent_mode() -> str:
    with suppress(OSError):
        found = re.search(r"\[(\w+)\]", _TRANSPARENT.read_text())
        if found is not None:
            return found[1]
    return "unknown to this kernel"
