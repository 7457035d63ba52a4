"""The bench of live curves meets its target on real traces, where they are beside the repository."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRACES = ROOT.parent / "shared" / "traces"
LONGEST_SECONDS = 240  # some 15 on an idle machine


def test_live_curves_are_within_a_point_of_exact_ones_on_real_traces() -> None:
    if not (TRACES / "mooncake_conversation.jsonl.zst").exists():
        pytest.skip("the traces are not beside the repository, in ../shared/traces")
    run = subprocess.run(
        [sys.executable, ROOT / "bench" / "curves.py", "--quick", "--json"],
        capture_output=True, text=True, timeout=LONGEST_SECONDS, cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    errors = {row["name"]: row["value"] for row in json.loads(run.stdout)["rows"] if row["target"] is not None}
    assert len(errors) == 4 and all(0 < error <= 0.01 for error in errors.values()), errors
