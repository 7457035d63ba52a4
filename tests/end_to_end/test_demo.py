"""`kvstore demo` itself, as a user runs it: every step identical, each hit where it should be, nothing left behind."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("transformers")


def test_the_demo_shows_what_it_promises(request):
    before = leftovers()
    told = subprocess.run(
        [sys.executable, "-m", "kvstore.cli.main", "demo", "--json"],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=request.config.rootpath,
    )
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    assert report["identical"] is True
    first, other, next_turn, restarted, killed = report["steps"]
    assert all(step["identical"] for step in report["steps"])
    assert first["resumed_tokens"] == 0 and first["output_tokens"] >= 200
    assert first["prompt_tokens"] > 2304
    assert (other["resumed_tokens"], other["tier"]) == (2304, "host")
    inside = (first["prompt_tokens"] + first["output_tokens"]) // 128 * 128
    assert first["prompt_tokens"] < inside == next_turn["resumed_tokens"]
    assert (restarted["resumed_tokens"], restarted["tier"]) == (2304, "disk")
    assert killed["resumed_tokens"] == 0
    for step in report["steps"]:
        assert step["recomputed_tokens"] == step["prompt_tokens"] - step["resumed_tokens"]
        assert step["ttft_s"] > 0 and step["cold_ttft_s"] > 0
    hits = (other, next_turn, restarted)
    assert all(step["shared_bytes"] > 0 and step["streamed_bytes"] == 0 for step in hits), "not through shared memory"
    assert leftovers() == before


def leftovers() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("kvstore-demo-*"))
