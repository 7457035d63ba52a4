"""Segment files: a header that is verified, writes that are whole pages, reads that notice the end."""

import os

import pytest

from kvstore.core.errors import CorruptFrame
from kvstore.core.keys import PAGE_BYTES
from kvstore.tiers.segment import (
    SegmentHeader,
    pack_header,
    path_of,
    read_header,
    read_header_of,
    read_into,
    segments_in,
    write_all,
)

HEADER = SegmentHeader(segment=3, segment_pages=16, slot_pages=5, assigned_at=1790000000.5)


@pytest.fixture
def fd(tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def test_a_header_comes_back(fd):
    os.pwrite(fd, pack_header(HEADER), 0)
    assert read_header(fd, 3) == HEADER
    assert list(HEADER.slot_starts()) == [1, 6, 11]


def test_a_header_is_what_version_1_wrote(fd):
    golden = "4b565345474d541a01000000030000001000000005000000000020e04eacda41"
    assert pack_header(HEADER)[:32].hex() == golden
    assert len(pack_header(HEADER)) == PAGE_BYTES


def test_every_flipped_bit_of_a_header_is_found(fd):
    page = bytearray(pack_header(HEADER))
    for position in range(36 + 16):
        page[position] ^= 1 << position % 8
        os.pwrite(fd, page, 0)
        page[position] ^= 1 << position % 8
        if position >= 32 + 16:
            continue  # behind the checksum
        with pytest.raises(CorruptFrame):
            read_header(fd, 3)


def test_a_header_of_another_segment_is_refused(fd):
    os.pwrite(fd, pack_header(HEADER), 0)
    with pytest.raises(CorruptFrame, match="belongs to segment 3"):
        read_header(fd, 4)


def test_a_header_that_is_cut_off_is_refused(fd):
    os.pwrite(fd, pack_header(HEADER)[:4000], 0)
    with pytest.raises(CorruptFrame, match="cut off"):
        read_header(fd, 3)


def test_an_unknown_version_is_named(tmp_path):
    page = bytearray(pack_header(HEADER))
    page[8] = 2
    path_of(tmp_path, 3).write_bytes(page)
    with pytest.raises(CorruptFrame, match="format version 2"):
        read_header_of(path_of(tmp_path, 3), 3)


def test_only_numbered_files_are_segments(tmp_path):
    for name in ("segment-000002", "segment-000010", "segment-x", "lock"):
        (tmp_path / name).touch()
    assert list(segments_in(tmp_path)) == [2, 10]


def test_many_buffers_are_written_in_order_to_the_end_of_a_page(fd):
    buffers = [bytes([index % 251]) * (index % 5) for index in range(3000)]
    whole = b"".join(buffers)
    os.pwrite(fd, b"\xff" * 5 * PAGE_BYTES, 0)
    write_all(fd, buffers, PAGE_BYTES)
    pages = -(-len(whole) // PAGE_BYTES) * PAGE_BYTES
    assert os.pread(fd, pages, PAGE_BYTES) == whole.ljust(pages, b"\0")
    assert os.pread(fd, 1, PAGE_BYTES + pages) == b"\xff"


def test_short_writes_are_carried_on(fd, monkeypatch):
    whole = bytes(index % 251 for index in range(10_000))
    buffers = [memoryview(whole)[start : start + 700] for start in range(0, 10_000, 700)]
    real = os.pwritev

    def short(fd, buffers, offset):
        return real(fd, [b"".join(buffers)[:333]], offset)

    monkeypatch.setattr(os, "pwritev", short)
    write_all(fd, buffers, 0)
    assert os.pread(fd, 20_000, 0) == whole.ljust(3 * PAGE_BYTES, b"\0")


def test_short_reads_are_carried_on_and_the_end_is_noticed(fd, monkeypatch):
    whole = bytes(index % 251 for index in range(1000))
    os.pwrite(fd, whole, 0)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: real(fd, [buffers[0][:97]], offset))
    target = bytearray(900)
    pieces = [memoryview(target)[:333], memoryview(target)[333:333], memoryview(target)[333:]]
    read_into(fd, pieces, 100, 900)
    assert target == whole[100:]
    with pytest.raises(CorruptFrame, match="ends 5 bytes before"):
        read_into(fd, pieces, 105, 900)
    read_into(fd, pieces, 105, 895)  # the last five may be missing
    assert target[:895] == whole[105:]
