"""Plots: every line and bound is in them, the name decides the format, the same results give the same file."""

from __future__ import annotations

import pytest
import small_trace

from kvstore.core.errors import InvalidInput
from kvstore.sim.bounds import References
from kvstore.sim.grid import Cell, run_grid
from kvstore.sim.layouts import sim_layout
from kvstore.sim.reading import load_trace
from kvstore.sim.report import Outcome, Report, capacity_blocks
from kvstore.sim.simulator import SimSettings

plot = pytest.importorskip("kvstore.sim.plot", reason="matplotlib is not installed", exc_type=ImportError)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    trace = load_trace(small_trace.written(tmp_path_factory.mktemp("trace")), small_trace.BLOCK_TOKENS)
    layout = sim_layout("plain:16", small_trace.BLOCK_TOKENS)
    settings = [
        SimSettings(layout, size << 10, policy=policy, is_ideal_space=True)
        for policy in ("lru", "gdsf")
        for size in (16, 32, 64)
    ]
    references = References(trace)
    results = run_grid([Cell(trace, one) for one in settings], processes=1)
    outcomes = [
        Outcome(one, result, references.minimum(capacity_blocks(one)))
        for one, result in zip(settings, results, strict=True)
    ]
    return Report(trace, references.infinite(), references.unique_blocks, outcomes)


def test_an_svg_has_a_line_for_each_policy_and_the_bounds(report, tmp_path):
    plot.draw([report], tmp_path / "hits.svg")
    text = (tmp_path / "hits.svg").read_text()
    for word in ("lru", "gdsf", "MIN", "without end", "16.0 KiB", "64.0 KiB", "small"):
        assert f">{word}" in text, word


def test_the_same_results_give_the_same_svg(report, tmp_path):
    for name in ("a.svg", "b.svg"):
        plot.draw([report, report], tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_png_is_one(report, tmp_path):
    plot.draw([report], tmp_path / "hits.PNG")
    assert (tmp_path / "hits.PNG").read_bytes().startswith(b"\x89PNG\r\n")


def test_a_name_without_a_known_format_is_refused(report, tmp_path):
    for name in ("hits", "hits.pdf", "svg"):
        with pytest.raises(InvalidInput, match=r"end it in \.svg or \.png"):
            plot.draw([report], tmp_path / name)


def test_a_file_that_cannot_be_written_is_one_sentence(report, tmp_path):
    with pytest.raises(InvalidInput, match="cannot be written"):
        plot.draw([report], tmp_path / "missing" / "hits.svg")
