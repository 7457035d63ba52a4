"""The quick forms of benches run to their end and print one JSON object of the agreed form. No figure decides here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
ROW = {"name": str, "value": float, "unit": str, "ceiling": float, "ratio": float, "target": float, "runs": int}
MAY_BE_NONE = ("ceiling", "ratio", "target")
LONGEST_SECONDS = 240  # about 5 on an idle machine; a hang must not hold up the tests for ever


@pytest.mark.parametrize("name", ["footprint", "throughput", "disk", "index", "load_or_recompute"])
def test_a_quick_bench_prints_one_object_of_the_agreed_form(name: str):
    run = subprocess.run(
        [sys.executable, BENCH / f"{name}.py", "--quick", "--json"],
        capture_output=True, text=True, timeout=LONGEST_SECONDS, cwd=BENCH.parent,
        env={"PYTHONPATH": str(BENCH.parent), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert run.returncode in (0, 1), run.stderr  # 1: a target was missed, as on a loaded machine it may be
    result = json.loads(run.stdout)
    assert list(result) == ["bench", "commit", "machine", "seed", "rows"] and result["bench"] == name
    assert result["rows"]
    for row in result["rows"]:
        assert set(row) == {*ROW, "ok"}
        for field, kind in ROW.items():
            value = row[field]
            assert (value is None and field in MAY_BE_NONE) or isinstance(value, (kind, int))
        assert row["ok"] in (True, False, None) and (row["ok"] is None) == (row["target"] is None)
    assert len({row["name"] for row in result["rows"]}) == len(result["rows"]), "a chart finds rows by name"
    assert run.returncode == any(row["ok"] is False for row in result["rows"])
