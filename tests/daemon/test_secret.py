"""The secret: made once, kept apart from the segments, never opened to others."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from kvstore.core.errors import MissingSecret, OperatorError
from kvstore.daemon.secret import load_secret


def test_the_first_start_makes_it_and_later_ones_read_it(tmp_path):
    path = tmp_path / "deep" / "segments.secret"
    secret = load_secret(path, tmp_path / "segments")
    assert len(secret) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_secret(path, tmp_path / "segments") == secret
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "nothing else may be left"


def test_without_a_file_every_start_has_its_own():
    assert load_secret(None, None) != load_secret(None, None)


def test_a_missing_secret_beside_segments_is_an_error_and_is_not_made_anew(tmp_path):
    disk = tmp_path / "segments"
    disk.mkdir()
    (disk / "segment-0").write_bytes(b"x")
    with pytest.raises(MissingSecret, match=r"segments\.secret is missing: put it back, or move .* away"):
        load_secret(tmp_path / "segments.secret", disk)
    assert not (tmp_path / "segments.secret").exists()


def test_a_disk_with_only_a_lock_is_empty(tmp_path):
    disk = tmp_path / "segments"
    disk.mkdir()
    (disk / "lock").touch()
    assert load_secret(tmp_path / "segments.secret", disk)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_secret_open_to_others_is_refused(tmp_path, mode):
    path = tmp_path / "secret"
    load_secret(path, None)
    path.chmod(mode)
    with pytest.raises(OperatorError, match=f"open to others .mode {mode:04o}.: run chmod 600"):
        load_secret(path, None)


@pytest.mark.parametrize("text", ["", "abcd", "z" * 64, "00" * 33])
def test_a_damaged_secret_is_refused_and_left_as_it_is(tmp_path, text):
    path = tmp_path / "secret"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(OperatorError, match="does not hold 32 bytes"):
        load_secret(path, None)
    assert path.read_text() == text


def test_a_link_in_its_place_is_refused(tmp_path):
    load_secret(tmp_path / "elsewhere", None)
    (tmp_path / "secret").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OperatorError, match="cannot be read"):
        load_secret(tmp_path / "secret", None)


def test_an_unwritable_place_is_named():
    with pytest.raises(OperatorError, match="cannot be written"):
        load_secret(Path("/proc/kvstore.secret"), None)
