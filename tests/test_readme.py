"""The README's commands and code, run as they stand (paths moved to a folder of the test)."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLE_FOLDER = "/tmp/kvstore-example"
KVSTORE = [sys.executable, "-m", "kvstore.cli.main"]


def block_behind(marker: str) -> str:
    """The fenced block behind `<!-- marker -->`."""
    found = re.search(rf"<!-- {re.escape(marker)} -->\n```\w+\n(.*?)```", README.read_text(), re.S)
    assert found is not None, f"README.md has no block behind {marker!r}"
    return found.group(1)


def command(line: str, folder: Path) -> list[str]:
    """A `kvstore ...` line of the README, run by this interpreter."""
    words = shlex.split(line.replace(EXAMPLE_FOLDER, str(folder)))
    assert words[0].endswith("kvstore")
    return KVSTORE + words[1:]


@pytest.fixture
def example_daemon(tmp_path: Path) -> Iterator[Path]:
    """The README's `kvstore serve`, ready."""
    (line,) = block_behind("run: serve").strip().splitlines()
    process = subprocess.Popen(command(line, tmp_path), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    deadline = time.monotonic() + 60
    while " ready on " not in (said := process.stderr.readline()):
        assert process.poll() is None and time.monotonic() < deadline, said
    try:
        yield tmp_path
    finally:
        process.terminate()
        assert process.wait(30) == 0
        process.stderr.close()


def test_the_client_example_prints_what_it_says(example_daemon: Path) -> None:
    code = block_behind("run: client")
    expected = [line.split(": ")[0] for line in re.findall(r"print\(.*\)  # (.*)", code)]
    assert len(expected) == 4
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code.replace(EXAMPLE_FOLDER, str(example_daemon)), "README.md", "exec"), {})
    assert said.getvalue().splitlines() == expected


def test_the_operators_commands_run(example_daemon: Path) -> None:
    for line in block_behind("run: commands").strip().splitlines():
        done = subprocess.run(command(line, example_daemon), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stdout, (line, done.stderr)
        if "--json" in line:
            json.loads(done.stdout)


def test_a_made_up_trace_is_simulated(tmp_path: Path) -> None:
    make, simulate = block_behind("run: simulate").strip().splitlines()
    make, trace = make.split(" > ")
    assert trace in simulate
    with Path(trace.replace(EXAMPLE_FOLDER, str(tmp_path))).open("w") as written:
        subprocess.run(command(make, tmp_path), stdout=written, timeout=120, check=True)
    done = subprocess.run(command(simulate, tmp_path), capture_output=True, text=True, timeout=250)
    assert done.returncode == 0 and "arc" in done.stdout, done.stderr


def test_every_flag_of_serve_is_in_the_readme() -> None:
    said = subprocess.run(
        [*KVSTORE, "serve", "--help"], capture_output=True, text=True, timeout=60, env={"COLUMNS": "200"}
    )
    flags = set(re.findall(r"--[a-z-]+", said.stdout)) - {"--help"}
    assert flags and flags == set(re.findall(r"^\| `(--[a-z-]+)", README.read_text(), re.M))


def test_the_demo_command_sets_itself_up_and_its_demo_is_identical() -> None:
    make, install, demo = block_behind("demo command").strip().split(" && ")
    assert make == "python3 -m venv .venv" and ".[demo]" in install and demo == ".venv/bin/kvstore demo"
    done = subprocess.run([*KVSTORE, "demo", "--json"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["identical"] is True and len(said["steps"]) == 5
    fields = {
        "name",
        "prompt_tokens",
        "resumed_tokens",
        "recomputed_tokens",
        "tier",
        "ttft_s",
        "cold_ttft_s",
        "identical",
    }
    assert all(fields <= set(step) and step["identical"] for step in said["steps"])
    resumed = {step["name"][0]: step["resumed_tokens"] for step in said["steps"][1:]}
    assert resumed["B"] == resumed["C"] == 2304
    assert {step["tier"] for step in said["steps"]} >= {"host", "disk"}


def test_the_test_command_is_what_ci_runs() -> None:
    command = block_behind("test command")
    script = (README.parent / ".ci" / "run").read_text()
    assert "<!-- test command -->" in script and "README.md" in script
    assert all(tool in command for tool in ("venv", "[test]", "pytest", "ruff check", "ruff format --check", "mypy"))
