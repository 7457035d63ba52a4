"""`kvstore workload`: JSON lines that a trace's reader takes, the same for the same seed."""

import hashlib
import json
import os
import subprocess
import sys

import cli_runner
import pytest

from kvstore.sim.reading import load_trace
from kvstore.sim.workloads import WORKLOADS, trace_of


def run(*arguments: object) -> cli_runner.Ran:
    return cli_runner.run("workload", *arguments)


@pytest.mark.parametrize("name", WORKLOADS)
def test_what_is_written_is_the_workload(name, tmp_path):
    code, out, err = run(name, "--seed", 7, "--requests", 40)
    assert (code, err, out.count("\n")) == (0, "", 40)
    path = tmp_path / f"{name}-7.jsonl"
    path.write_text(out)
    assert load_trace(path, 128) == trace_of(WORKLOADS[name], 7, 40)


def test_block_tokens_are_chosen():
    rows = [
        json.loads(line) for line in run("rag", "--seed", 1, "--requests", 9, "--block-tokens", 512).stdout.splitlines()
    ]
    assert all(len(row["hash_ids"]) == -(-row["input_length"] // 512) for row in rows)


def test_another_process_writes_the_same():
    digests = set()
    for hash_seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-m", "kvstore.cli.main", "workload", "mixed", "--seed", "7", "--requests", "60"],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            timeout=120,
        )
        digests.add(hashlib.sha256(done.stdout).hexdigest())
    out = run("mixed", "--seed", 7, "--requests", 60).stdout.encode()
    assert digests == {hashlib.sha256(out).hexdigest()}


def test_one_layout_of_mixed():
    everything = [json.loads(line) for line in run("mixed", "--seed", 2, "--requests", 80).stdout.splitlines()]
    parts = 0
    for layout in ("v4-flash", "v4-pro"):
        out = run("mixed", "--seed", 2, "--requests", 80, "--layout", layout).stdout
        rows = [json.loads(line) for line in out.splitlines()]
        assert rows and all(row["kind"].endswith(f"@{layout}") for row in rows)
        parts += len(rows)
    assert parts == len(everything) == 80


def test_help_lists_every_workload():
    code, out, _ = run("--help")
    assert code == 0
    for workload in WORKLOADS.values():
        assert workload.name in out and workload.says in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("caht", "--seed", 1), "workload caht is unknown: did you mean chat?"),
        (
            ("xyz", "--seed", 1),
            f"workload xyz is unknown: choose {', '.join(WORKLOADS)}",
        ),
        (("chat", "--seed", 1, "--requests", 0), "--requests 0 is out of range: give 1 to 1000000"),
        (("chat", "--seed", 1, "--block-tokens", -1), "--block-tokens -1 is out of range: give 1 to 1000000"),
        (
            ("chat", "--seed", 1, "--layout", "v4-pro"),
            "--layout v4-pro of chat: only mixed has layouts, v4-flash and v4-pro",
        ),
        (
            ("mixed", "--seed", 1, "--layout", "v5"),
            "--layout v5 of mixed: only mixed has layouts, v4-flash and v4-pro",
        ),
    ],
)
def test_a_wrong_question_gets_one_plain_sentence(arguments, sentence):
    assert run(*arguments) == (2, "", f"kvstore: {sentence}\n")
