"""The config: few keys, checked once, every refusal one sentence with a remedy."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kvstore.config import DEFAULT_LISTEN, filesystem_bytes, load_config, memory_bytes
from kvstore.core.disk_admission import DiskAdmission
from kvstore.core.errors import ConfigError
from kvstore.core.placement import Placement
from kvstore.core.sizes import format_size, parse_size

EVERY_KEY = """
listen = "unix:/run/there/kv.sock"
secret_file = "/etc/kv/secret"
drain_seconds = 3

[host]
bytes = "64MiB"
handoff_bytes = "5MiB"

[disk]
folder = "/data/segments"
bytes = "2GiB"
codec = "zstd"
admission = "adaptive"
write_bytes_per_day = "5TB"

[match]
placement = "interval:1024"
replay = false
lease_seconds = 5

[limits]
calls = 10
fetches = 3
puts = 2
call_seconds = 4.5
max_call_seconds = 9
lanes = 7
staging_bytes = "3MiB"
"""


def _load(tmp_path: Path, text: str, **flags: object):
    path = tmp_path / "kvstore.toml"
    path.write_text(text)
    return load_config(path, {key.replace("_", ".", 1): value for key, value in flags.items()})


def test_without_a_file_everything_has_a_default():
    config = load_config()
    assert config.listen == DEFAULT_LISTEN
    assert (config.disk, config.secret_file) == (None, None)
    assert config.match.placement == Placement.parse("adaptive")
    assert config.evict.policy == "adaptive" and config.evict.keep_seconds is None
    assert (config.lives.scratch, config.lives.session, config.lives.shared) == (600.0, None, None)
    assert config.host.bytes == 1 << 30


def test_every_key_is_read(tmp_path):
    config = _load(tmp_path, EVERY_KEY)
    assert config.listen == "unix:/run/there/kv.sock"
    assert config.secret_file == Path("/etc/kv/secret")
    assert config.drain_seconds == 3.0
    assert config.host.bytes == 64 << 20
    assert config.host.handoff_bytes == 5 << 20
    assert config.disk is not None
    assert (config.disk.folder, config.disk.bytes) == (Path("/data/segments"), 2 << 30)
    assert config.disk.codec == "zstd"
    assert (config.disk.admission, config.disk.write_bytes_per_day) == (DiskAdmission.ADAPTIVE, 5 * 10**12)
    assert config.match.placement == Placement.parse("interval:1024", replay=False)
    assert config.match.lease_seconds == 5.0
    limits = config.limits
    assert (limits.calls, limits.fetches, limits.puts) == (10, 3, 2)
    assert (limits.call_seconds, limits.max_call_seconds) == (4.5, 9.0)
    assert (limits.lanes, limits.staging_bytes) == (7, 3 << 20)


def test_flags_override_the_file_and_absent_flags_do_not(tmp_path):
    config = _load(tmp_path, EVERY_KEY, host_bytes="32MiB", disk_bytes=None)
    assert config.host.bytes == 32 << 20
    assert config.disk is not None and config.disk.bytes == 2 << 30


def test_the_secret_lies_beside_the_disk_folder_by_default(tmp_path):
    config = _load(tmp_path, f'[disk]\nfolder = "{tmp_path}/segments"\nbytes = "1GiB"')
    assert config.secret_file == tmp_path / "segments.secret"


def test_percents_are_of_memory_and_of_the_filesystem(tmp_path):
    config = _load(tmp_path, f'[host]\nbytes = "10%"\n[disk]\nfolder = "{tmp_path}/not/yet"\nbytes = "50%"')
    assert config.host.bytes == memory_bytes() // 10
    assert config.disk is not None
    assert config.disk.bytes == filesystem_bytes(tmp_path) // 2


@pytest.mark.parametrize(
    ("host", "handoffs"),
    [
        ('bytes = "8MiB"', 64 << 20),
        ('bytes = "2GiB"', 128 << 20),
        ('bytes = "2GiB"\nhandoff_bytes = 0', 0),
        ('bytes = "2GiB"\nhandoff_bytes = "1MiB"', 1 << 20),
    ],
)
def test_handoffs_have_a_sixteenth_of_the_host_but_at_least_64_mib(tmp_path, host, handoffs):
    assert _load(tmp_path, f"[host]\n{host}").host.handoff_bytes == handoffs


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[host]\nbites = "1GiB"', r"host\.bites in .*kvstore\.toml is an unknown key: did you mean host\.bytes\?"),
        ('lisen = "unix:/x"', "did you mean listen"),
        ("[limits]\nput = 3", r"did you mean limits\.puts"),
        ("zzzzzz = 1", "unknown key: the keys are disk.admission, disk.bytes, "),
        (
            '[host]\nbytes = "4GB"',
            r"host\.bytes in .*: 4GB has the unknown unit GB: use one of B, KiB, MiB, GiB, TiB or %",
        ),
        ("[host]\nbytes = -5", "-5 is negative: give a size of at least 0"),
        ('[host]\nbytes = "-4GiB"', "-4GiB is negative"),
        ('[host]\nbytes = "lots"', "'lots' is no size"),
        ("[host]\nbytes = true", "True is no size"),
        ("[host]\nbytes = 1.5", "1.5 is no size"),
        ('[host]\nbytes = "101%"', "101% is more than there is"),
        ('[host]\nbytes = "1MiB"', "give it at least 8MiB"),
        ('[host]\nbytes = "900TiB"', "this machine has .*: give it less"),
        ('[host]\nhandoff_bytes = "900TiB"', r"host\.handoff_bytes in .* beside host.bytes=.*: give them less"),
        ("[host]\nhandoff_bytes = -1", "-1 is negative"),
        ('[limits]\nstaging_bytes = "900TiB"', r"limits\.staging_bytes in .* beside host.bytes=.*: give them less"),
        ("[limits]\nlanes = 0", "a whole number from 1 to 4096"),
        ('[disk]\nbytes = "1GiB"', "set without a folder: name one with disk.folder"),
        ('[disk]\nfolder = "/x"\nbytes = 0', "give the disk a size, or leave disk.folder out"),
        ('[disk]\nfolder = "/x"\nbytes = "900000TiB"', "the filesystem of /x has .*: give it less"),
        ('[disk]\nfolder = ""', "give it a text"),
        ('[disk]\ncodec = "lz4"', "choose one of raw, zstd"),
        ("[limits]\nputs = 0", "a whole number from 1 to 256"),
        ("[limits]\nputs = 1.5", "a whole number from 1 to 256"),
        ('secret_file = "/data/segments/secret"\n[disk]\nfolder = "/data/segments"', "keep it outside"),
        ('[evict]\npolicy = "lur"', r"evict\.policy in .*: no policy is called 'lur': did you mean lru"),
        ('[match]\nplacement = "often"', r"match\.placement in .*: placement 'often' is unknown"),
        ("[match]\nreplay = 1", "write true or false"),
        ("[match]\nlease_seconds = nan", "a number from 1 to 3600"),
        ("[match]\nlease_seconds = true", "a number from 1 to 3600"),
        ("drain_seconds = -1", "a number from 0 to 600"),
        ("[limits]\ncall_seconds = 500", "above max_call_seconds"),
        ("listen = 3", "give it a text"),
        ("listen = ", "is no TOML"),
        ("host = 3", "host in .* is an unknown key"),
        ('[disk]\nadmission = "some"', r"disk\.admission in .*: 'some' is no admission to disk: choose one of all, "),
        ('[disk]\nadmission = "adaptive"', r"disk\.admission in .*: .* set write_bytes_per_day, such as 5TB"),
        ('[disk]\nwrite_bytes_per_day = "5XB"', "the unknown unit XB: use one of B, KiB, MiB, GiB, TiB, MB, GB, TB"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says) as refusal:
        _load(tmp_path, text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("size", ["10%", "1GiB"])
def test_a_folder_that_cannot_be_looked_at_is_named(tmp_path, monkeypatch, size):
    def denied(self):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "exists", denied)
    with pytest.raises(ConfigError, match=r"/closed/disk cannot be looked at \(Permission denied\)"):
        load_config(None, {"disk.folder": "/closed/disk", "disk.bytes": size})


def test_a_refused_flag_is_called_by_its_name(tmp_path):
    with pytest.raises(ConfigError, match=r"^--host-bytes: 4GB has the unknown unit"):
        _load(tmp_path, "", host_bytes="4GB")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml cannot be read"):
        load_config(tmp_path / "absent.toml")


def test_sizes_read_back_as_they_are_written():
    for text, nbytes in {"4096": 4096, " 4 KiB ": 4096, "1.5GiB": 3 << 29, "0": 0, "2TiB": 2 << 40}.items():
        assert parse_size(text) == nbytes
    assert format_size(parse_size("3GiB")) == "3.0 GiB"
    with pytest.raises(ConfigError, match="nothing to be a share of"):
        parse_size("10%")
