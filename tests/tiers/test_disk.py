"""The disk tier: slots hold what was written, and every refusal of the device has a name and a sentence."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from disk_samples import (
    GROUP,
    SEGMENT_PAGES,
    entry_for,
    failing,
    file_size_limit,
    frame_of,
    header_of,
    open_tier,
    page_of,
    put,
    raw_of,
    read,
)

from kvstore.codec.frame import max_frame_bytes
from kvstore.core.errors import CorruptFrame, FolderInUse, OperatorError, TierFault
from kvstore.core.keys import PAGE_BYTES
from kvstore.tiers.disk import MAX_SEGMENTS, DiskTier


@pytest.fixture
def tier(tmp_path):
    tier = open_tier(tmp_path / "disk")
    yield tier
    tier.close()


def test_a_new_folder_is_private_and_empty(tmp_path, tier):
    assert (tmp_path / "disk").stat().st_mode & 0o777 == 0o700
    assert tier.recovered.entries == [] and tier.recovered.problems == []
    put(tier, 0)
    files = [path for path in (tmp_path / "disk").iterdir() if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_slots_hold_what_was_written_and_are_recycled(tier):
    entries = put(tier, *range(20))
    assert [read(tier, entry) for entry in entries] == [raw_of(number) for number in range(20)]
    tier.write(entries[4].page, frame_of(header_of(77)))
    assert read(tier, entry_for(77, page=entries[4].page)) == raw_of(77)
    with pytest.raises(CorruptFrame, match="expected object"):
        read(tier, entries[4])
    assert read(tier, entries[5]) == raw_of(5)


def test_segments_take_all_their_room_when_assigned(tmp_path, tier):
    assert not list((tmp_path / "disk").glob("segment-*"))
    tier.assign(2, 3)
    stat = (tmp_path / "disk" / "segment-000002").stat()
    assert stat.st_size == SEGMENT_PAGES * PAGE_BYTES <= stat.st_blocks * 512


def test_an_emptied_segment_may_have_slots_of_another_size(tmp_path):
    tier = open_tier(tmp_path / "disk")
    put(tier, *range(7))
    tier.manifest.commit([], [entry_for(number).key for number in range(7)])
    tier.assign(0, 3)
    tier.write(1, frame_of(header_of(9)))
    tier.write(4, frame_of(header_of(10)))
    tier.sync([0])
    tier.manifest.commit([entry_for(9, page=1), entry_for(10, page=4)], [])
    tier.close()
    tier = open_tier(tmp_path / "disk")
    assert tier.recovered.slot_pages == {0: 3}
    assert [read(tier, entry) for entry in tier.recovered.entries] == [raw_of(9), raw_of(10)]
    tier.close()


def test_an_erased_frame_is_gone(tier):
    (entry,) = put(tier, 0)
    tier.erase(entry.page)
    with pytest.raises(CorruptFrame, match="no frame begins here"):
        read(tier, entry)


def test_a_missing_segment_is_a_corrupt_frame_not_a_crash(tier):
    with pytest.raises(CorruptFrame, match="segment 4 is gone"):
        tier.read(4 * SEGMENT_PAGES + 1, 100)


def test_a_segment_cut_short_is_a_corrupt_frame_at_every_byte(tmp_path, tier):
    entries = put(tier, *range(7))
    start = entries[6].page * PAGE_BYTES
    path = tmp_path / "disk" / "segment-000000"
    for length in range(start + entries[6].frame_bytes - 1, start - 1, -1):
        os.truncate(path, length)
        with pytest.raises(CorruptFrame):
            read(tier, entries[6])
    assert read(tier, entries[5]) == raw_of(5)


def test_folder_limits_are_kept(tmp_path):
    tier = DiskTier.open(tmp_path, 10_000 * 2 * PAGE_BYTES, 2 * PAGE_BYTES)
    assert tier.segment_count <= MAX_SEGMENTS
    tier.close()
    with pytest.raises(OperatorError, match="give the disk tier more bytes"):
        DiskTier.open(tmp_path / "small", 4096, 1 << 20)


def test_segments_keep_their_size_when_the_capacity_changes(tmp_path):
    tier = open_tier(tmp_path)
    put(tier, 0, 8, 36)
    tier.close()
    tier = DiskTier.open(tmp_path, 2 * SEGMENT_PAGES * PAGE_BYTES, 4 * PAGE_BYTES)
    assert (tier.segment_pages, tier.segment_count) == (SEGMENT_PAGES, 2)
    assert [entry.block for entry in tier.recovered.entries] == [0, 8]
    assert not (tmp_path / "segment-000005").exists()
    assert any("does not fit" in problem for problem in tier.recovered.problems)
    tier.close()


# -- who may use the folder


def test_a_folder_held_by_another_process_is_named_with_its_holder(tmp_path):
    code = (
        "import sys; from pathlib import Path; from kvstore.tiers.folder import *; make_folder(Path(sys.argv[1]));"
        "fd = lock_folder(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_with_path()) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(FolderInUse, match=rf"held by process {holder.pid}: stop it or choose another folder"):
            open_tier(tmp_path)
        holder.stdin.close()
    open_tier(tmp_path).close()


def test_a_folder_cannot_be_opened_twice_in_one_process(tmp_path, tier):
    with pytest.raises(FolderInUse, match=f"process {os.getpid()}"):
        open_tier(tmp_path / "disk")


@pytest.mark.parametrize("name", ["file/disk", "file"])
def test_an_unusable_folder_is_a_plain_sentence(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(OperatorError, match="make it writable for this user or choose another"):
        open_tier(tmp_path / name)


def test_a_folder_where_nothing_can_be_made_is_a_plain_sentence():
    with pytest.raises(OperatorError, match="cannot be used"):
        open_tier(Path("/proc/self/kvstore"))


# -- devices that refuse


def test_a_full_device_refuses_a_segment_and_keeps_nothing_of_it(tmp_path, tier):
    put(tier, 0)
    with (
        file_size_limit(3 * PAGE_BYTES),
        pytest.raises(TierFault, match="cannot prepare disk segment 1: File too large"),
    ):
        tier.assign(1, 1)
    assert not (tmp_path / "disk" / "segment-000001").exists()
    put(tier, 7)
    assert read(tier, entry_for(0)) == raw_of(0)


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs: needs root")
def test_enospc_on_a_real_full_filesystem_is_a_plain_sentence(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("this machine lets nobody mount a tmpfs")
    try:
        tier = DiskTier.open(tmp_path / "disk", 64 << 20, 512 << 10)
        tier.assign(0, 1)
        (tmp_path / "filler").write_bytes(bytes(200_000))
        with pytest.raises(TierFault, match="No space left on device; free space on the device or give the disk tier"):
            tier.assign(1, 1)
        tier.write(1, frame_of(header_of(0)))
        tier.sync([0])
        entry = entry_for(0, page=1)
        tier.manifest.commit([entry], [])
        assert read(tier, entry) == raw_of(0)
        tier.close()
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("nth", range(1, 8))
def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, nth, persistent, code):
    tier = open_tier(tmp_path)
    done = []
    with failing(monkeypatch, "pwritev", code, nth, 10**9 if persistent else nth):
        for numbers in ((0, 1), (7,), (8, 14)):  # 8 writes: three headers, five frames
            try:
                done += put(tier, *numbers)
            except TierFault as fault:
                assert os.strerror(code) in str(fault)
    assert [read(tier, entry) for entry in done] == [raw_of(entry.block) for entry in done]
    tier.close()
    tier = open_tier(tmp_path)
    assert tier.recovered.entries == done and tier.recovered.source == "manifest"
    assert [read(tier, entry) for entry in done] == [raw_of(entry.block) for entry in done]
    tier.close()


def test_a_failed_sync_puts_the_segment_out_of_use_for_good(tmp_path, monkeypatch):
    tier = open_tier(tmp_path)
    put(tier, 0, 7)
    tier.write(page_of(1), frame_of(header_of(1)))
    tier.write(page_of(8), frame_of(header_of(8)))
    real = os.fdatasync
    with failing(monkeypatch, "fdatasync", errno.EIO, 1, 1), pytest.raises(TierFault, match="sync disk segment 0"):
        tier.sync([0, 1])
    assert os.fdatasync is real and tier.bad_segments == {0}
    for refused in (
        lambda: tier.sync([0]),
        lambda: tier.write(page_of(1), frame_of(header_of(1))),
        lambda: tier.read(page_of(0), 100),
        lambda: tier.assign(0, 2),
        lambda: tier.erase(page_of(0)),
    ):
        with pytest.raises(TierFault, match="segment 0 is out of use"):
            refused()
    tier.sync([1])
    assert read(tier, entry_for(7)) == raw_of(7)
    tier.close()
    tier = open_tier(tmp_path)
    assert [entry.block for entry in tier.recovered.entries] == [0, 7] and not tier.bad_segments
    tier.close()


def test_a_read_that_fails_is_a_fault_not_a_corruption(tier, monkeypatch):
    (entry,) = put(tier, 0)
    with failing(monkeypatch, "preadv", errno.EIO, 1, 1), pytest.raises(TierFault, match="read disk segment 0: Input/"):
        read(tier, entry)
    assert read(tier, entry) == raw_of(0)


def test_threads_may_work_on_slots_of_their_own(tmp_path):
    tier = open_tier(tmp_path)
    put(tier, 0, 7, 14, 21)

    def work(first):
        for number in range(first, 28, 4):
            tier.write(page_of(number), frame_of(header_of(number)))
            tier.sync([page_of(number) // SEGMENT_PAGES])
            tier.manifest.commit([entry_for(number)], [])
            tier.manifest.touch({entry_for(number).key: 1800000000.0 + number})
            assert read(tier, entry_for(number)) == raw_of(number)
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    tier.close()
    tier = open_tier(tmp_path)
    assert tier.recovered.entries == [entry_for(number) for number in range(28)]
    tier.close()


def test_a_frame_fits_the_slot_that_was_computed_for_it():
    assert sum(map(len, frame_of(header_of(0)))) == max_frame_bytes(GROUP.sections) <= PAGE_BYTES


def _with_path():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
