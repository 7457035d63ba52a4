"""`kvstore check`: clean is 0, damage is 1 and named, a folder that cannot be checked is 2 and a plain sentence."""

import errno
import json
import os

import cli_runner
import pytest

from kvstore.cli import check as check_module
from kvstore.cli.check import check
from kvstore.codec.frame import FrameHeader, encode_frame, max_frame_bytes
from kvstore.codec.lossless import Codec
from kvstore.core.checksum import content_checksum
from kvstore.core.keys import PAGE_BYTES
from kvstore.core.presets import v4_tiny
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.manifest import FILE_NAME
from kvstore.tiers.rebuild import entry_of

GROUP = v4_tiny().rows
OBJECTS = 10
SEGMENT_PAGES = 5  # a header and four slots of one page
RAW = b"raw " * (GROUP.nbytes // 4) + b"r" * (GROUP.nbytes % 4)


def header_of(number):
    return FrameHeader(
        kind=GROUP.kind,
        group=0,
        prefix=bytes((number,)) * 32,
        parent=bytes((number - 1,)) * 32 if number else b"root" * 8,
        namespace=b"n" * 32,
        fingerprint=b"f" * 32,
        block=number,
        generation=number + 1,
        lineage=b"l" * 16,
        parent_lineage=b"p" * 16,
        content=content_checksum([RAW]),
        written_at=1790000000.0,
        writer=b"w" * 16,
        object_class=1,
        ttl_seconds=None,
        raw_bytes=len(RAW),
    )


def page_of(number):
    return number // 4 * SEGMENT_PAGES + 1 + number % 4


def write(tier, number, *, indexed=True):
    tier.write(
        page_of(number), encode_frame(header_of(number), GROUP.sections, [memoryview(RAW)], lambda section: Codec.RAW)
    )
    if indexed:
        entry = entry_of(header_of(number), page_of(number), max_frame_bytes(GROUP.sections))
        tier.manifest.commit([entry], [])


def reopen(folder):
    return DiskTier.open(folder, 4 * SEGMENT_PAGES * PAGE_BYTES, SEGMENT_PAGES * PAGE_BYTES)


@pytest.fixture
def folder(tmp_path):
    tier = reopen(tmp_path / "disk")
    for segment in range(3):
        tier.assign(segment, 1)
    for number in range(OBJECTS):
        write(tier, number)
    tier.close()
    return tmp_path / "disk"


def run(*arguments):
    return cli_runner.run("check", *arguments)


def flip(folder, number, offset):
    with open(folder / f"segment-{page_of(number) // SEGMENT_PAGES:06d}", "r+b") as file:
        position = page_of(number) % SEGMENT_PAGES * PAGE_BYTES + offset
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes((byte ^ 4,)))


def test_a_clean_folder_is_0(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "lock"}
    result = run(folder, "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["clean"] is True and facts["bad"] == [] and facts["problems"] == []
    assert (facts["segments"], facts["slots"], facts["entries"], facts["whole"]) == (3, 12, OBJECTS, OBJECTS)
    assert facts["raw_bytes"] == OBJECTS * len(RAW)
    assert before == {
        path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name in before
    }


def test_the_table_says_clean(folder):
    result = run(folder)
    assert result.exit_code == 0 and "clean" in result.stdout


@pytest.mark.parametrize("offset", [0, 20, 150, 310, 900])
def test_a_flipped_bit_is_1_and_says_where(folder, offset):
    flip(folder, 6, offset)
    result = run(folder, "--json")
    assert result.exit_code == 1
    (bad,) = json.loads(result.stdout)["bad"]
    assert (bad["segment"], bad["page"], bad["prefix"]) == (1, 3, "06060606") and bad["problem"]
    assert "segment 1 page 3 object 06060606" in run(folder).stdout


def test_a_truncated_segment_is_1_and_names_what_is_lost(folder):
    os.truncate(folder / "segment-000001", 3 * PAGE_BYTES)
    facts = json.loads(run(folder, "--json").stdout)
    assert [bad["page"] for bad in facts["bad"]] == [3, 4] and facts["whole"] == 8
    assert facts["problems"] == ["segment 1 is cut off: 8192 bytes are missing"]


def test_a_segment_without_header_is_1_and_its_frames_are_bad(folder):
    with open(folder / "segment-000001", "r+b") as file:
        file.write(b"X")
    facts = json.loads(run(folder, "--json").stdout)
    assert [bad["segment"] for bad in facts["bad"]] == [1, 1, 1, 1] and facts["whole"] == 6
    assert "segment 1 has no header" in facts["problems"][0]


def test_a_missing_manifest_is_1_and_its_frames_are_still_read(folder):
    (folder / FILE_NAME).unlink()
    result = run(folder, "--json")
    facts = json.loads(result.stdout)
    assert result.exit_code == 1 and "missing" in facts["problems"][0]
    assert (facts["orphans"], facts["bad"]) == (OBJECTS, [])
    flip(folder, 6, 900)
    assert json.loads(run(folder, "--json").stdout)["bad"][0]["prefix"] == "06060606"


def test_a_damaged_manifest_is_1(folder):
    os.truncate(folder / FILE_NAME, 5000)
    result = run(folder)
    assert result.exit_code == 1 and "could not be read to its end" in result.stdout


def test_what_a_crash_leaves_behind_is_clean(folder):
    tier = reopen(folder)
    write(tier, 10, indexed=False)
    write(tier, 11, indexed=False)
    tier.close()
    flip(folder, 11, 900)
    facts = json.loads(run(folder, "--json").stdout)
    assert facts["clean"] is True and (facts["orphans"], facts["leftovers"]) == (1, 1)


def test_an_entry_that_describes_another_frame_is_1(folder):
    tier = reopen(folder)
    entry = entry_of(header_of(3), page_of(3), max_frame_bytes(GROUP.sections))
    tier.manifest.commit([entry._replace(block=99)], [])
    tier.close()
    facts = json.loads(run(folder, "--json").stdout)
    assert [bad["problem"] for bad in facts["bad"]] == ["the manifest describes another frame"]


def test_a_folder_held_by_a_daemon_is_2(folder):
    tier = reopen(folder)
    result = run(folder)
    assert result.exit_code == 2 and result.stdout == ""
    assert f"held by process {os.getpid()}: stop it" in result.stderr
    tier.close()
    assert run(folder).exit_code == 0


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_that_is_not_ours_is_2(tmp_path, name):
    (tmp_path / "empty").mkdir()
    result = run(tmp_path / name)
    assert result.exit_code == 2 and "is no disk folder of kvstore" in result.stderr
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_folder_that_may_not_be_read_is_2(folder, monkeypatch):
    def denied(self, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(check_module, "segments_in", denied)
    result = run(folder)
    assert result.exit_code == 2 and "cannot be read (Permission denied): check its owner" in result.stderr


def test_long_work_shows_progress_on_standard_error_only(folder, monkeypatch):
    monkeypatch.setattr(check_module, "QUIET_SECONDS", -1.0)
    result = run(folder, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["clean"]
    assert check(folder).is_clean
