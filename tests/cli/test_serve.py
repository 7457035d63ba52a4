"""`kvstore serve` and `kvstore status` as an operator sees them: real processes, the real store."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"}


def start(*arguments: str, **options) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kvstore.cli.main", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, **options
    )


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    child = start(*arguments)
    out, err = child.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, child.returncode, out, err)


@pytest.fixture
def serve(tmp_path):
    """Starts daemons in a folder of the test; what is left of them is killed."""
    tmp_path.chmod(0o700)
    children = []

    def starting(*arguments: str, listen: str | None = None):
        child = start(
            "serve", "--json", "--host-bytes", "64MiB", "--listen", listen or f"unix:{tmp_path}/kv.sock", *arguments
        )
        children.append(child)
        line = child.stdout.readline()
        assert line, child.stderr.read()
        return child, json.loads(line)

    yield starting
    for child in children:
        child.kill()
        child.communicate(timeout=30)


def test_it_says_where_it_listens_and_what_it_got(serve, tmp_path):
    child, facts = serve()
    assert facts["address"] == f"unix:{tmp_path}/kv.sock"
    assert facts["pid"] == child.pid
    assert [tier["tier"] for tier in facts["tiers"]] == ["host"]
    assert 60 << 20 < facts["tiers"][0]["capacity_bytes"] <= 64 << 20
    assert facts["attach"] == f"{tmp_path}/kv.sock.attach"
    assert Path(facts["attach"]).is_socket()
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 0
    assert f"ready on unix:{tmp_path}/kv.sock: host " in err
    assert not Path(facts["attach"]).exists()


def test_it_says_which_pages_it_got(serve):
    child, facts = serve()
    huge = facts["tiers"][0]["huge_bytes"]
    assert 0 <= huge <= facts["tiers"][0]["ready_bytes"]
    why = re.compile(r"no huge pages: (shmem_enabled is .+, vm\.nr_hugepages is \d+.*|a region of .+|the machine's .+)")
    got = re.compile(r"huge pages: [\d.]+ \wi?B of [\d.]+ \wi?B")
    assert (got if huge else why).fullmatch(facts["huge_pages"])
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=30)
    assert facts["huge_pages"] in err


def test_status_shows_it_as_json_and_as_a_table(serve, tmp_path):
    _, facts = serve("--disk", f"{tmp_path}/segments", "--disk-bytes", "64MiB")
    address = facts["address"]
    said = json.loads(run("status", "--connect", address, "--json").stdout)
    assert said["boot_epoch"] == facts["boot_epoch"]
    assert {tier["tier"] for tier in said["tiers"]} == {"host", "disk"}
    assert all(tier["is_writable"] and not tier["trouble"] for tier in said["tiers"])
    assert (said["attached_workers"], said["staging_bytes"]) == (0, 0)
    assert 0 < said["lock_longest_seconds"] <= said["lock_held_seconds"] and said["lock_waited_seconds"] >= 0
    table = run("status", "--connect", address)
    assert table.returncode == 0
    assert "host" in table.stdout and "disk" in table.stdout and "0 leases" in table.stdout
    assert "lock: held for " in table.stdout


def test_the_secret_is_made_beside_the_disk_folder(serve, tmp_path):
    serve("--disk", f"{tmp_path}/segments", "--disk-bytes", "64MiB")
    assert stat.S_IMODE((tmp_path / "segments.secret").stat().st_mode) == 0o600


def test_the_config_file_is_read_and_flags_override_it(serve, tmp_path):
    path = tmp_path / "kvstore.toml"
    path.write_text('listen = "unix:/nowhere/kv.sock"\n[host]\nbytes = "8MiB"\n')
    _, facts = serve("--config", str(path))
    assert facts["address"] == f"unix:{tmp_path}/kv.sock"
    assert facts["tiers"][0]["capacity_bytes"] > 60 << 20


def test_it_serves_on_a_loopback_port(serve):
    _, facts = serve(listen="127.0.0.1:0")
    assert run("status", "--connect", facts["address"], "--json").returncode == 0


def _refused(*arguments: str) -> str:
    """One plain sentence on standard error, exit code 2, nothing on standard output."""
    done = run(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    return done.stderr


def test_a_socket_in_use_is_said_and_the_first_daemon_goes_on(serve, tmp_path):
    _, facts = serve()
    said = _refused("serve", "--listen", facts["address"], "--disk", f"{tmp_path}/other", "--disk-bytes", "64MiB")
    assert "another daemon listens" in said
    assert not (tmp_path / "other").exists(), "the second daemon must not have touched its folder"
    assert run("status", "--connect", facts["address"]).returncode == 0


def test_a_folder_held_by_another_daemon_is_said(serve, tmp_path):
    disk = ("--disk", f"{tmp_path}/segments", "--disk-bytes", "64MiB")
    serve(*disk)
    said = _refused("serve", "--host-bytes", "64MiB", "--listen", f"unix:{tmp_path}/two.sock", *disk)
    assert "is held by process" in said
    assert not (tmp_path / "two.sock").exists()


def test_a_missing_secret_is_said(serve, tmp_path):
    disk = ("--disk", f"{tmp_path}/segments", "--disk-bytes", "64MiB")
    child, _ = serve(*disk)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=30)
    (tmp_path / "segments.secret").rename(tmp_path / "away")
    said = _refused("serve", "--host-bytes", "64MiB", "--listen", f"unix:{tmp_path}/kv.sock", *disk)
    assert "secret" in said and "put it back" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--host-bytes", "4GB"), "--host-bytes: 4GB has the unknown unit GB"),
        (("--host-bytes", "-4GiB"), "--host-bytes: -4GiB is negative"),
        (("--disk-bytes", "1GiB"), "--disk-bytes is set without a folder"),
        (("--listen", "0.0.0.0:7001"), "open the store to the network"),
        (("--listen", "nonsense"), "is no address"),
        (("--config", "absent.toml"), "cannot be read"),
    ],
)
def test_bad_flags_are_refused_in_one_sentence(tmp_path, arguments, says):
    assert says in _refused("serve", *arguments)


def test_an_unknown_config_key_names_the_nearest(tmp_path):
    path = tmp_path / "kvstore.toml"
    path.write_text("[host]\nbites = 3\n")
    assert "did you mean host.bytes?" in _refused("serve", "--config", str(path))


def test_status_without_a_daemon_says_what_to_do(tmp_path):
    assert "start one with kvstore serve" in _refused("status", "--connect", f"unix:{tmp_path}/kv.sock")
    assert "give unix:PATH or HOST:PORT" in _refused("status", "--connect", "kv.sock")


def test_a_killed_daemon_is_followed_by_another_on_the_same_socket(serve):
    first, facts = serve()
    first.kill()
    first.wait(30)
    _, again = serve()
    assert again["address"] == facts["address"]
    assert again["boot_epoch"] != facts["boot_epoch"]


def test_two_gibibytes_do_not_keep_it_from_being_ready(serve):
    """Host memory is populated while it serves: ready does not wait for the last region."""
    started = time.monotonic()
    _, facts = serve("--host-bytes", "2GiB")
    assert facts["tiers"][0]["capacity_bytes"] > 1 << 30
    assert run("status", "--connect", facts["address"]).returncode == 0
    assert time.monotonic() - started < 30  # a hang, not a speed: bench/ measures the start
