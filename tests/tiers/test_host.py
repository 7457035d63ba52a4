"""The host tier's regions: sealed, their size kept, their stamp table where readers look, their pages told truly."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import subprocess
import sys

import pytest

from kvstore.core.errors import TierFault
from kvstore.core.keys import PAGE_BYTES
from kvstore.tiers import host as host_module
from kvstore.tiers import huge_pages
from kvstore.tiers.host import HostTier, region_file_bytes, stamp_offset

PAGES = 16


@pytest.fixture(params=[False, True], ids=["as the machine is", "asking for huge pages"])
def tier(request, monkeypatch):
    """Of three regions, two populated. Asking is another way of making them, whether the machine grants any or not."""
    if request.param:
        monkeypatch.setattr(host_module, "asks_for_huge_pages", lambda: True)
    tier = HostTier(PAGES, 3)
    tier.populate()
    tier.populate()
    yield tier
    tier.close()


def test_pieces_are_where_the_slots_are(tier):
    [first, second] = tier.pieces((3, PAGES + 5), (PAGE_BYTES, PAGE_BYTES + 10))
    assert (first.nbytes, second.nbytes) == (PAGE_BYTES, 10)
    first[:3], second[:3] = b"abc", b"xyz"
    assert os.pread(tier.region_fd(0), 3, 3 * PAGE_BYTES) == b"abc"
    assert os.pread(tier.region_fd(1), 3, 5 * PAGE_BYTES) == b"xyz"
    first.release()
    second.release()


def test_the_stamp_table_lies_behind_the_pages(tier):
    assert stamp_offset(PAGES) == PAGES * PAGE_BYTES
    assert os.fstat(tier.region_fd(1)).st_size >= region_file_bytes(PAGES) == (PAGES + 1) * PAGE_BYTES
    tier.mark((2, PAGES + 7), 0x1122334455667788)
    for region, page in ((0, 2), (1, 7)):
        word = os.pread(tier.region_fd(region), 8, stamp_offset(PAGES) + 8 * page)
        assert int.from_bytes(word, "little") == 0x1122334455667788
    assert os.pread(tier.region_fd(0), 8, stamp_offset(PAGES) + 8 * 7) == bytes(8)


def test_a_region_is_sealed_and_the_tier_writes_on(tier):
    fd = tier.region_fd(0)
    seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    for seal in (fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SEAL, 0x10):
        assert seals & seal
    for attempt in (
        lambda: os.ftruncate(fd, 0),
        lambda: os.pwrite(fd, b"x", 0),
        lambda: mmap.mmap(fd, PAGE_BYTES, prot=mmap.PROT_READ | mmap.PROT_WRITE),
    ):
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == errno.EPERM
    [piece] = tier.pieces((0,), (4,))
    piece[:] = b"well"
    assert os.pread(fd, 4, 0) == b"well"
    piece.release()


def test_its_room_is_taken_when_it_is_populated(tier):
    for number in range(2):
        assert os.fstat(tier.region_fd(number)).st_blocks * 512 >= region_file_bytes(PAGES)


def test_huge_bytes_are_those_that_the_kernel_says(tier):
    """Sixteen pages are less than one huge page: asked for or not, there can be none."""
    assert tier.huge_bytes == 0


def mapped_huge() -> int:
    """Bytes of regions that this process has mapped by huge pages."""
    with open("/proc/self/smaps") as lines:
        mapped = re.findall(r"memfd:kvstore-region.*?ShmemPmdMapped: +(\d+) kB", lines.read(), re.DOTALL)
    return sum(map(int, mapped)) << 10


def test_large_regions_count_what_is_mapped_huge(monkeypatch):
    """Asked for on every machine; counted only where the kernel gave them, by its own account."""
    monkeypatch.setattr(host_module, "asks_for_huge_pages", lambda: True)
    monkeypatch.setattr(host_module, "free_huge_pages", lambda: 0)
    before = mapped_huge()
    tier = HostTier(1024, 1)
    tier.populate()
    assert tier.huge_bytes == min(mapped_huge() - before, 1024 * PAGE_BYTES)
    if not huge_pages.asks_for_huge_pages():
        assert tier.huge_bytes == 0
    tier.close()


@pytest.mark.parametrize(
    ("mode", "reserved", "region_bytes", "asks", "why"),
    [
        ("always advise [never] deny", 0, 4 << 20, False, "shmem_enabled is never, vm.nr_hugepages is 0"),
        (
            "always advise [never] deny",
            3,
            4 << 20,
            False,
            "shmem_enabled is never, vm.nr_hugepages is 3, 2 of them free",
        ),
        ("always advise [never] deny", 3, 1 << 20, False, "a region of the host tier, 1/64 of it, is smaller than one"),
        ("always [advise] never deny", 0, 1 << 20, True, "a region of the host tier, 1/64 of it, is smaller than one"),
        ("always [advise] never deny", 0, 4 << 20, True, "the machine's memory is in pieces too small for them"),
        ("[always] advise never deny", 0, 4 << 20, True, "the machine's memory is in pieces too small for them"),
        ("", 0, 4 << 20, False, "shmem_enabled is unknown to this kernel, vm.nr_hugepages is 0"),
    ],
)
def test_the_machines_settings_are_read(tmp_path, monkeypatch, mode, reserved, region_bytes, asks, why):
    (tmp_path / "shmem_enabled").write_text(mode)
    (tmp_path / "nr_hugepages").write_text(f"{reserved}\n")
    (tmp_path / "free_hugepages").write_text("2\n")
    monkeypatch.setattr(huge_pages, "_TRANSPARENT", tmp_path / "shmem_enabled")
    monkeypatch.setattr(huge_pages, "_RESERVED", tmp_path)
    assert huge_pages.asks_for_huge_pages() is asks
    assert huge_pages.why_no_huge_pages(region_bytes) == why
    assert huge_pages.free_huge_pages() == 2


def test_a_machine_that_says_nothing_grants_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(huge_pages, "_TRANSPARENT", tmp_path / "absent")
    monkeypatch.setattr(huge_pages, "_RESERVED", tmp_path / "absent")
    assert (huge_pages.asks_for_huge_pages(), huge_pages.free_huge_pages()) == (False, 0)


def test_reserved_pages_that_somebody_else_takes_first_leave_small_ones(monkeypatch):
    """There seem to be enough; the kernel has none, or has some: the region is there either way."""
    monkeypatch.setattr(host_module, "free_huge_pages", lambda: 1 << 20)
    tier = HostTier(1024, 1)
    before = len(os.listdir("/proc/self/fd"))
    tier.populate()
    [piece] = tier.pieces((1023,), (4,))
    piece[:] = b"here"
    piece.release()
    assert len(os.listdir("/proc/self/fd")) <= before + 2, "the region's file and its mapping's"
    tier.close()


def test_memory_that_is_not_granted_is_a_fault_that_names_the_remedy(monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", _refuse)
    tier = HostTier(PAGES, 1)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TierFault, match="choose a smaller --host-bytes"):
        tier.populate()
    assert (tier.populated, len(os.listdir("/proc/self/fd"))) == (0, before)


def test_memory_that_cannot_be_touched_is_refused_and_no_signal():
    """In a process of its own: what the kernel has no page for is a SIGBUS when it is written."""
    touched = """
import mmap, os
from kvstore.tiers.host import _touch
fd = os.memfd_create("region")
os.ftruncate(fd, 16 * 4096)
memory = mmap.mmap(fd, 16 * 4096)
os.ftruncate(fd, 8 * 4096)
try:
    _touch(memory)
except OSError:
    print("refused")
"""
    ended = subprocess.run([sys.executable, "-c", touched], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "refused\n"), ended.stderr


def _refuse(fd: int, offset: int, length: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
