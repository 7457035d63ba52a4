"""Benches print one form: a table, or one JSON object that a chart can be made from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))  # benches are scripts beside each other, not a package

from harness import Against, Bench, commit_id, machine, main  # noqa: E402


def quick() -> Bench:
    return Bench("demo", seed=7, is_quick=True)


def test_a_target_is_for_the_ratio_where_there_is_a_ceiling():
    bench = quick()
    assert bench.row("fetch", 6.0, "GB/s", ceiling=10.0, target=0.7).ok is False
    assert bench.row("fetch again", 8.0, "GB/s", ceiling=10.0, target=0.7).ok is True
    assert bench.row("speed-up", 12.0, "x", target=10.0).ok is True
    assert bench.row("lookup p50", 12.0, "ms", target=10.0, against=Against.VALUE_AT_MOST).ok is False
    assert bench.row("share", 1.0, "ms", ceiling=2.0, target=0.4, against=Against.RATIO_AT_MOST).ok is False
    assert bench.row("no target", 1.0, "ms").ok is None
    assert [row.name for row in bench.missed] == ["fetch", "lookup p50", "share"]


def test_a_value_is_the_median_of_its_runs():
    bench, figures = Bench("demo", 7, False), iter([99.0, 5.0, 1.0, 3.0])
    value = bench.median(lambda: next(figures), runs=3, warmups=1)
    assert value == 3.0 and bench.row("figure", value, "s").runs == 3
    figures = iter([9.0, 1.0, 2.0, 3.0, 4.0])
    assert bench.median(lambda: next(figures), runs=5, warmups=0) == 3.0
    assert quick().median(iter([1.0, 2.0, 3.0]).__next__, runs=5, warmups=0) == 2.0  # a quick run takes three at most


def test_a_missed_target_fails_the_run_but_still_prints(capsys):
    with pytest.raises(SystemExit) as stopped:
        main("demo", lambda bench: bench.row("speed-up", 2, "x", target=10) and None, arguments=["--json"])
    printed = capsys.readouterr()
    assert stopped.value.code == 1 and "missed: speed-up" in printed.err
    assert json.loads(printed.out)["rows"][0]["ok"] is False


def test_a_bench_can_ask_for_arguments_of_its_own(capsys):
    seen = []
    main(
        "demo",
        lambda bench: seen.append((bench.seed, bench.is_quick, bench.options.tokens)),
        add_arguments=lambda parser: parser.add_argument("--tokens", type=int, default=5) and None,
        arguments=["--quick", "--seed", "9", "--tokens", "11"],
    )
    assert seen == [(9, True, 11)] and "demo" in capsys.readouterr().out


def test_the_footprint_bench_meets_its_targets():
    run = subprocess.run(
        [sys.executable, BENCH / "footprint.py", "--quick", "--json"],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": str(BENCH.parent), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    result = json.loads(run.stdout)
    assert list(result) == ["bench", "commit", "machine", "seed", "rows"]
    assert result["bench"] == "footprint" and result["commit"] == commit_id() and result["machine"] == machine()
    for row in result["rows"]:
        assert list(row) == ["name", "value", "unit", "ceiling", "ratio", "target", "ok", "runs"]
        assert row["ok"] in (True, None)
    assert {row["name"]: row["value"] for row in result["rows"]}["deepseek-v4-pro: rows of a block"] == 644_024


def test_the_machine_is_described_without_its_name():
    assert "cores" in machine() and not any(part.startswith("/") for part in machine().split())
