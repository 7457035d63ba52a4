"""Whatever happened to a folder: it opens, and gives back only bytes that verify."""

import errno
import os
import random
import shutil

import lmdb
import pytest
from disk_samples import (
    SEGMENT_PAGES,
    SEGMENTS,
    entry_for,
    failing,
    file_size_limit,
    frame_of,
    header_of,
    noise,
    open_tier,
    page_of,
    put,
    raw_of,
    read,
)

from kvstore.core.errors import CorruptFrame, OperatorError, TierFault
from kvstore.core.keys import PAGE_BYTES
from kvstore.tiers.manifest import FILE_NAME
from kvstore.tiers.rebuild import newest
from kvstore.tiers.recover import GENERATION_LEAP, SET_ASIDE_KEPT, recover

OBJECTS = 30


@pytest.fixture
def folder(tmp_path):
    """A closed folder with OBJECTS objects."""
    tier = open_tier(tmp_path / "disk")
    put(tier, *range(OBJECTS))
    tier.manifest.save_namespace(noise("namespace", 32), "tenant", b"layout")
    tier.close()
    return tmp_path / "disk"


def reopened(folder):
    """What a start finds: the recovered facts, and each entry's bytes (None where they do not verify)."""
    tier = open_tier(folder)
    try:
        return tier.recovered, {entry.block: readable(tier, entry) for entry in tier.recovered.entries}
    finally:
        tier.close()


def readable(tier, entry):
    try:
        return read(tier, entry)
    except CorruptFrame:
        return None


def never_wrong(found):
    return all(data in (None, raw_of(block)) for block, data in found.items())


def everything():
    return {number: raw_of(number) for number in range(OBJECTS)}


def test_a_restart_brings_back_contents_recency_and_names(folder):
    recovered, found = reopened(folder)
    assert recovered.source == "manifest" and recovered.problems == []
    assert recovered.entries == [entry_for(number) for number in range(OBJECTS)]
    assert found == everything()
    assert recovered.next_generation == OBJECTS + 1 + GENERATION_LEAP
    assert recovered.slot_pages == dict.fromkeys(range(5), 1)
    assert [saved.tenant for saved in recovered.namespaces] == ["tenant"]


def test_a_lost_manifest_is_rebuilt_from_the_frames(folder):
    (folder / FILE_NAME).unlink()
    recovered, found = reopened(folder)
    assert recovered.source == "rebuilt" and "missing" in recovered.problems[0]
    expected = [entry_for(number) for number in range(OBJECTS)]
    assert recovered.entries == [entry._replace(last_used=entry.written_at) for entry in expected]
    assert found == everything()
    assert recovered.next_generation == OBJECTS + GENERATION_LEAP
    assert [saved.tenant for saved in recovered.namespaces] == ["tenant"]
    assert reopened(folder)[0].source == "manifest"


def test_a_manifest_cut_off_anywhere_never_takes_the_daemon_down(folder):
    whole = (folder / FILE_NAME).read_bytes()
    step, rebuilt = len(whole) // 14, 0
    for length in [0, 1, 4095, 4096, 8191, 8192, 8193, *range(step, len(whole), step)]:
        (folder / FILE_NAME).write_bytes(whole[:length])
        recovered, found = reopened(folder)
        assert found == everything(), length
        rebuilt += recovered.source == "rebuilt"
    assert rebuilt > 16  # the last page may hold nothing of use


def test_flipped_bits_in_a_manifest_never_give_a_wrong_entry(folder):
    whole = (folder / FILE_NAME).read_bytes()
    rng = random.Random(7)
    rebuilt = 0
    for round_ in range(40):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 10, 200))):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        (folder / FILE_NAME).write_bytes(damaged)
        recovered, found = reopened(folder)
        rebuilt += recovered.source == "rebuilt"
        assert never_wrong(found), round_
        assert {entry.key for entry in recovered.entries} <= {entry_for(number).key for number in range(OBJECTS)}
        if recovered.source == "rebuilt":
            assert found == everything()
    assert rebuilt > 10
    assert len(list(folder.glob("manifest.bad-*"))) == SET_ASIDE_KEPT


def test_overwritten_pages_of_a_manifest_never_take_the_daemon_down(folder):
    whole = (folder / FILE_NAME).read_bytes()
    rng = random.Random(11)
    for page in range(len(whole) // PAGE_BYTES):
        damaged = bytearray(whole)
        damaged[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = rng.randbytes(PAGE_BYTES)
        (folder / FILE_NAME).write_bytes(damaged)
        assert never_wrong(reopened(folder)[1]), page


def test_a_malformed_record_sets_the_manifest_aside(folder):
    with lmdb.open(str(folder / FILE_NAME), subdir=False, lock=False, max_dbs=3) as environment:
        database = environment.open_db(b"entries")
        with environment.begin(write=True) as transaction:
            transaction.put(noise("prefix 3", 32) + b"\0", b"too short", db=database)
    recovered, found = reopened(folder)
    assert recovered.source == "rebuilt" and "wrong length" in recovered.problems[0]
    assert found == everything()
    assert (folder / "manifest.bad-1").exists()


def test_a_manifest_of_other_segments_is_not_believed(folder, tmp_path):
    tier = open_tier(tmp_path / "other")
    for number in range(OBJECTS):
        segment = page_of(number) // SEGMENT_PAGES
        if segment not in tier.slot_pages:
            tier.assign(segment, 1)
    tier.manifest.commit([entry_for(100 + number, page=page_of(number)) for number in range(OBJECTS)], [])
    tier.close()
    shutil.copy(tmp_path / "other" / FILE_NAME, folder / FILE_NAME)
    recovered, found = reopened(folder)
    assert recovered.source == "rebuilt" and found == everything()


def test_entries_that_point_nowhere_are_dropped(folder):
    tier = open_tier(folder)
    segment_beyond = entry_for(200, page=SEGMENTS * SEGMENT_PAGES + 1)
    header_page = entry_for(201, page=SEGMENT_PAGES)
    too_long = entry_for(202, page=page_of(5), generation=900)._replace(frame_bytes=PAGE_BYTES + 1)
    tier.manifest.commit([segment_beyond, header_page, too_long], [])
    tier.close()
    recovered, found = reopened(folder)
    assert recovered.source == "manifest" and found == everything()
    assert any(problem.startswith("3 objects lay in segments") for problem in recovered.problems)


def test_of_two_entries_on_one_page_the_higher_generation_wins(folder):
    tier = open_tier(folder)
    tier.write(page_of(3), frame_of(header_of(50)))
    tier.sync([0])
    tier.manifest.commit([entry_for(50, page=page_of(3))], [])  # crashed before the drop of number 3
    tier.close()
    recovered, found = reopened(folder)
    assert found == {number: raw_of(number) for number in [*range(OBJECTS), 50] if number != 3}
    assert len({entry.page for entry in recovered.entries}) == len(recovered.entries)


def test_of_two_entries_on_one_page_the_one_whose_frame_lies_there_wins(folder):
    tier = open_tier(folder)
    tier.write(page_of(3), frame_of(header_of(50, generation=2)))  # older than number 3, whose slot it was given
    tier.sync([0])
    tier.manifest.commit([entry_for(50, page=page_of(3), generation=2)], [])  # durable; crashed before the drop
    tier.close()
    _, found = reopened(folder)
    assert found == {number: raw_of(number) for number in [*range(OBJECTS), 50] if number != 3}


def test_of_two_frames_of_one_object_the_newer_is_rebuilt(folder):
    tier = open_tier(folder)
    tier.write(page_of(33), frame_of(header_of(3, generation=99)))
    tier.sync([4])
    tier.close()
    (folder / FILE_NAME).unlink()
    recovered, found = reopened(folder)
    assert found == everything()
    assert next(entry for entry in recovered.entries if entry.block == 3).page == page_of(33)
    assert recovered.next_generation == 99 + GENERATION_LEAP


def test_newest_gives_parents_before_children():
    entries = [entry_for(number) for number in (3, 1, 2)]
    assert [entry.block for entry in newest(entries)] == [1, 2, 3]


def test_an_erased_frame_is_not_rebuilt(folder):
    tier = open_tier(folder)
    tier.erase(page_of(3))
    tier.sync([0])
    tier.close()
    (folder / FILE_NAME).unlink()
    assert 3 not in reopened(folder)[1]


def test_an_orphan_of_a_crash_is_not_an_object(folder):
    tier = open_tier(folder)
    tier.write(page_of(31), frame_of(header_of(31)))
    tier.sync([4])
    tier.close()
    assert reopened(folder)[1] == everything()


@pytest.mark.parametrize("length", [0, 100, 4095, 4096, 10_000, 20_000, 32_767])
def test_a_segment_cut_short_costs_only_what_lay_there(folder, length):
    os.truncate(folder / "segment-000002", length)
    _, found = reopened(folder)
    assert never_wrong(found)
    elsewhere = {number: raw_of(number) for number in range(OBJECTS) if page_of(number) // SEGMENT_PAGES != 2}
    assert elsewhere.items() <= found.items()
    tier = open_tier(folder)
    tier.assign(2, 1)
    tier.write(page_of(14), frame_of(header_of(14)))
    assert read(tier, entry_for(14)) == raw_of(14)
    tier.close()


@pytest.mark.parametrize("manifest", [True, False])
def test_flipped_bits_in_a_segment_never_give_wrong_bytes(folder, manifest):
    path = folder / "segment-000001"
    whole = path.read_bytes()
    rng = random.Random(3)
    frame_at = (page_of(7) % SEGMENT_PAGES) * PAGE_BYTES
    positions = [*(rng.randrange(60) for _ in range(4)), *(frame_at + rng.randrange(1400) for _ in range(16))]
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        if not manifest:
            (folder / FILE_NAME).unlink()
        _, found = reopened(folder)
        assert never_wrong(found), position
        assert len([data for data in found.values() if data]) >= OBJECTS - 7
        path.write_bytes(whole)
        (folder / FILE_NAME).unlink()
        assert reopened(folder)[1] == everything()


def test_a_child_that_hangs_costs_a_rebuild(folder, tmp_path, monkeypatch):
    slow = tmp_path / "slow.py"
    slow.write_text("import time; time.sleep(600)")
    monkeypatch.setattr("kvstore.tiers.manifest_reader.__file__", str(slow))
    recovered, manifest = recover(folder, SEGMENT_PAGES, SEGMENTS, limit_seconds=0.3)
    manifest.close()
    assert recovered.source == "rebuilt" and len(recovered.entries) == OBJECTS


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("nth", [1, 2, 4, 5, 9, 20, 36])
def test_a_sector_that_cannot_be_read_costs_only_what_lay_there(folder, monkeypatch, nth, manifest):
    if not manifest:
        (folder / FILE_NAME).unlink()
    with failing(monkeypatch, "pread", errno.EIO, nth, nth):
        tier = open_tier(folder)
    assert len(tier.recovered.entries) >= OBJECTS - (SEGMENT_PAGES - 1)
    assert all(read(tier, entry) == raw_of(entry.block) for entry in tier.recovered.entries)
    tier.close()


def test_a_device_that_cannot_be_read_is_a_plain_sentence_and_loses_nothing(folder, monkeypatch):
    with failing(monkeypatch, "pread", errno.EIO, 1), pytest.raises(OperatorError, match="Input/output error; check"):
        open_tier(folder)
    assert reopened(folder)[1] == everything()


def test_a_full_device_at_start_is_a_plain_sentence_and_loses_nothing(folder):
    with file_size_limit(5 * PAGE_BYTES), pytest.raises(TierFault, match="cannot write the manifest"):
        open_tier(folder)
    recovered, found = reopened(folder)
    assert recovered.source == "rebuilt" and found == everything()


def test_a_folder_that_was_never_used_has_no_problems(tmp_path):
    recovered, found = reopened(tmp_path / "new")
    assert (recovered.entries, recovered.problems, recovered.source, found) == ([], [], "manifest", {})
