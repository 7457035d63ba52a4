"""The manifest: what is committed is read back by the child, whole and verified, or not at all."""

import os
import subprocess
import sys

import lmdb
import pytest
from disk_samples import entry_for, file_size_limit, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.core.errors import CorruptFrame, TierFault
from kvstore.tiers import manifest_child, manifest_reader
from kvstore.tiers.folder import SavedNamespace, load_namespaces, make_folder
from kvstore.tiers.manifest import FILE_NAME, Manifest
from kvstore.tiers.manifest_child import read_manifest
from kvstore.tiers.manifest_record import VALUE_BYTES, ManifestEntry, pack_entry, unpack_entry


@pytest.fixture
def manifest(tmp_path):
    make_folder(tmp_path)
    manifest = Manifest.create(tmp_path, [], 1)
    yield manifest
    manifest.close()


def contents(folder):
    return read_manifest(folder / FILE_NAME)


def by_block(entries):
    return sorted(entries, key=lambda entry: entry.block)


def test_what_is_committed_is_read(tmp_path, manifest):
    entries = [entry_for(number) for number in range(100)]
    manifest.commit(entries, [])
    assert by_block(contents(tmp_path).entries) == entries
    manifest.commit([], [entry.key for entry in entries[10:]])
    assert by_block(contents(tmp_path).entries) == entries[:10]


def test_an_object_that_is_dropped_and_put_in_one_commit_is_there(tmp_path, manifest):
    manifest.commit([entry_for(0)], [])
    moved = entry_for(0, page=30, generation=9)
    manifest.commit([moved], [moved.key])
    assert contents(tmp_path).entries == [moved]


def test_recency_is_kept_for_what_is_there_and_nothing_else(tmp_path, manifest):
    first, second = entry_for(1), entry_for(2)
    manifest.commit([first, second], [])
    manifest.touch({first.key: 1900000000.5, entry_for(3).key: 5.0})
    assert by_block(contents(tmp_path).entries) == [first._replace(last_used=1900000000.5), second]
    manifest.commit([], [first.key])
    manifest.touch({first.key: 1900000001.0})
    manifest.commit([first], [])
    assert by_block(contents(tmp_path).entries) == [first, second]


def test_a_generation_is_never_given_twice_even_after_all_is_dropped(tmp_path, manifest):
    entry = entry_for(0, generation=41)
    manifest.commit([entry], [])
    manifest.commit([], [entry.key])
    manifest.commit([entry_for(1, generation=5)], [])
    assert manifest.next_generation == contents(tmp_path).next_generation == 42


def test_a_full_map_grows(tmp_path):
    make_folder(tmp_path)
    manifest = Manifest.create(tmp_path, [], 1, map_bytes=64 << 10)
    entries = [entry_for(number) for number in range(700)]
    manifest.commit(entries[:600], [])
    manifest.commit(entries[600:], [entries[0].key])
    assert by_block(contents(tmp_path).entries) == entries[1:]
    manifest.close()


def test_a_new_manifest_takes_the_place_of_the_old_one(tmp_path, manifest):
    manifest.commit([entry_for(0)], [])
    newer = Manifest.create(tmp_path, [entry_for(1)], 50)
    assert contents(tmp_path).entries == [entry_for(1)]
    assert contents(tmp_path).next_generation == 50
    newer.commit([entry_for(2)], [])
    assert by_block(contents(tmp_path).entries) == [entry_for(1), entry_for(2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE_NAME, "namespaces"]
    newer.close()


def test_a_commit_that_the_device_refuses_changes_nothing(tmp_path, manifest):
    kept = [entry_for(number) for number in range(50)]
    manifest.commit(kept, [])
    with file_size_limit((tmp_path / FILE_NAME).stat().st_size), pytest.raises(TierFault, match="manifest"):
        manifest.commit([entry_for(number) for number in range(100, 2000)], [kept[0].key])
    with pytest.raises(TierFault, match=r"out of use .*check the device"):
        manifest.commit([entry_for(60)], [])
    assert by_block(contents(tmp_path).entries) == kept
    assert contents(tmp_path).next_generation == manifest.next_generation == 51


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs: needs root")
def test_a_full_filesystem_refuses_a_commit_and_recovers_with_room(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("this machine lets nobody mount a tmpfs")
    try:
        make_folder(tmp_path)
        manifest = Manifest.create(tmp_path, [entry_for(0)], 1)
        with pytest.raises(TierFault):
            manifest.commit([entry_for(number) for number in range(1, 2000)], [])
        assert contents(tmp_path).entries == [entry_for(0)]
        manifest.close()
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_namespaces_are_kept_beside_the_index(tmp_path, manifest):
    manifest.save_namespace(noise("a", 32), "tenant ä/../x", b"layout a")
    manifest.save_namespace(noise("b", 32), "", b"")
    manifest.save_namespace(noise("a", 32), "tenant ä/../x", b"layout a")
    (tmp_path / "namespaces" / "left.new").touch()
    saved, problems = load_namespaces(tmp_path)
    expected = [SavedNamespace(noise("a", 32), "tenant ä/../x", b"layout a"), SavedNamespace(noise("b", 32), "", b"")]
    assert sorted(saved) == sorted(expected) and problems == []


def test_a_damaged_namespace_is_a_problem_not_a_crash(tmp_path, manifest):
    manifest.save_namespace(noise("a", 32), "tenant", b"layout")
    path = tmp_path / "namespaces" / noise("a", 32).hex()
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        assert load_namespaces(tmp_path)[0] == [] and len(load_namespaces(tmp_path)[1]) == 1
        path.write_bytes(whole[:position])
        assert load_namespaces(tmp_path)[0] == []


# -- records


entries = st.builds(
    ManifestEntry,
    prefix=st.binary(min_size=32, max_size=32),
    group=st.integers(0, 255),
    page=st.integers(0, 2**48),
    frame_bytes=st.integers(1, 2**31),
    generation=st.integers(0, 2**64 - 1),
    parent=st.binary(min_size=32, max_size=32),
    block=st.integers(0, 2**48),
    lineage=st.binary(min_size=16, max_size=16),
    parent_lineage=st.binary(min_size=16, max_size=16),
    content=st.binary(min_size=16, max_size=16),
    namespace=st.binary(min_size=32, max_size=32),
    fingerprint=st.binary(min_size=32, max_size=32),
    raw_bytes=st.integers(1, 2**30),
    written_at=st.floats(0, 1e10),
    last_used=st.floats(0, 1e10),
    writer=st.binary(min_size=16, max_size=16),
    object_class=st.integers(0, 255),
    ttl_seconds=st.none() | st.floats(0, 1e9),
)


@given(entries)
def test_a_record_comes_back(entry):
    assert unpack_entry(*pack_entry(entry), entry.last_used) == entry


@settings(max_examples=30)
@given(entries)
def test_every_flipped_bit_of_a_record_is_found(entry):
    key, value = pack_entry(entry)
    both = bytearray(key + value)
    for position in range(len(both)):
        both[position] ^= 1 << position % 8
        with pytest.raises(CorruptFrame):
            unpack_entry(bytes(both[:33]), bytes(both[33:]), None)
        both[position] ^= 1 << position % 8


def test_a_record_is_what_version_1_wrote():
    key, value = pack_entry(entry_for(1))
    assert len(value) == VALUE_BYTES
    assert (key + value)[33:65].hex() == "01010100" + "09050000" + "02" + "00" * 7 + "02" + "00" * 7 + "01" + "00" * 7


# -- the child


def test_the_child_imports_nothing_of_ours(tmp_path, manifest):
    code = (
        "import runpy, sys; sys.argv = ['', sys.argv[1]]; "
        f"runpy.run_path({manifest_reader.__file__!r}, run_name='__main__'); "
        "sys.exit(any(name.split('.')[0] in ('kvstore', 'numpy', 'grpc') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / FILE_NAME)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith((1).to_bytes(8, "little"))  # the generation mark alone


def test_a_child_that_takes_too_long_is_ended(tmp_path, manifest, monkeypatch):
    slow = tmp_path / "slow.py"
    slow.write_text("import time; time.sleep(600)")
    monkeypatch.setattr(manifest_reader, "__file__", str(slow))
    with pytest.raises(CorruptFrame, match="in time"):
        read_manifest(tmp_path / FILE_NAME, limit_seconds=0.3)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGBUS)", "to its end"),
        ("import sys; sys.stdout.write('x' * 100)", "wrong length"),
        ("import sys; sys.stdout.buffer.write(b'Z' + bytes(2) + b'\\x08\\0\\0\\0' + bytes(7))", "to its end"),
        ("import sys; sys.stdout.buffer.write(b'Z' + bytes(2) + b'\\x08\\0\\0\\0' + bytes(8))", "generation mark"),
        ("import sys; sys.stdout.buffer.write(b'Q' + bytes(2) + b'\\x08\\0\\0\\0' + bytes(8))", "no known kind"),
        ("import sys\nwhile 1: sys.stdout.buffer.write((b'U' + bytes(6)) * 10000)", "more records than it can hold"),
        ("import sys; sys.stdout.buffer.write(b'E\\x21\\0\\x10\\0\\0\\0' + bytes(49))", "wrong length"),
    ],
)
def test_a_child_that_dies_or_talks_nonsense_is_not_believed(tmp_path, manifest, monkeypatch, code, why):
    child = tmp_path / "child.py"
    child.write_text(code)
    monkeypatch.setattr(manifest_reader, "__file__", str(child))
    with pytest.raises(CorruptFrame, match=why):
        read_manifest(tmp_path / FILE_NAME)


def test_records_may_be_cut_anywhere_on_their_way(tmp_path, manifest, monkeypatch):
    expected = [entry_for(number) for number in range(20)]
    manifest.commit(expected, [])
    monkeypatch.setattr(manifest_child, "_READ_BYTES", 7)
    assert by_block(contents(tmp_path).entries) == expected


def test_a_file_that_is_not_a_manifest_is_refused(tmp_path):
    for junk in (b"", b"x" * 100, bytes(100_000)):
        (tmp_path / FILE_NAME).write_bytes(junk)
        with pytest.raises(CorruptFrame):
            contents(tmp_path)


def test_lmdb_itself_can_open_what_we_write(tmp_path, manifest):
    manifest.commit([entry_for(0)], [])
    manifest.close()
    with lmdb.open(str(tmp_path / FILE_NAME), subdir=False, readonly=True, lock=False, max_dbs=3) as environment:
        assert environment.stat()["entries"] == 3
