"""What is told of a grid: rates against counts, bounds above results, and nothing lost between processes."""

from __future__ import annotations

import json

import pytest
import small_trace
from rich.console import Console

from kvstore.core.errors import ConfigError
from kvstore.core.placement import Placement
from kvstore.sim.bounds import References
from kvstore.sim.grid import Cell, run_grid
from kvstore.sim.layouts import sim_layout
from kvstore.sim.reading import load_trace
from kvstore.sim.report import Outcome, Report, capacity_blocks, facts, placement_name, tables
from kvstore.sim.simulator import SimSettings

KIB = 1 << 10


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    trace = load_trace(small_trace.written(tmp_path_factory.mktemp("trace")), small_trace.BLOCK_TOKENS)
    layout = sim_layout("plain:16", small_trace.BLOCK_TOKENS)
    settings = [
        SimSettings(layout, host_bytes, disk_bytes, policy, is_ideal_space=True)
        for policy in ("lru", "gdsf")
        for disk_bytes in (0, 64 * KIB)
        for host_bytes in (16 * KIB, 64 * KIB)
    ]
    references = References(trace)
    results = run_grid([Cell(trace, one) for one in settings], processes=1)
    outcomes = [
        Outcome(one, result, references.minimum(capacity_blocks(one)))
        for one, result in zip(settings, results, strict=True)
    ]
    return Report(trace, references.infinite(), references.unique_blocks, outcomes)


def test_the_object_has_the_promised_shape(report):
    told = json.loads(json.dumps(facts(report)))
    assert {"trace", "requests", "input_tokens", "bounds", "results"} <= set(told)
    assert (told["trace"], told["requests"], told["unique_blocks"]) == ("small", 72, 2 + 12 * 16)
    assert set(told["bounds"]) == {"infinite", "min"}
    assert len(told["results"]) == 8 and len(told["bounds"]["min"]) == 4
    keys = {"policy", "placement", "host_bytes", "disk_bytes", "hit_token_rate", "resumed_token_rate", "by_tier"}
    assert all(keys | {"disk_bytes_written", "bounds"} <= set(result) for result in told["results"])


def test_rates_are_shares_of_input_tokens_and_below_their_bounds(report):
    told = facts(report)
    for result, outcome in zip(told["results"], report.outcomes, strict=True):
        assert result["resumed_token_rate"] == outcome.result.resumed_tokens / told["input_tokens"]
        assert sum(result["by_tier"].values()) == pytest.approx(result["resumed_token_rate"])
        for name in ("block_hit_rate", "hit_token_rate", "resumed_token_rate"):
            bounds = result["bounds"]
            assert 0 <= result[name] <= bounds["min"][name] <= bounds["infinite"][name] < 1


def test_kinds_and_modes_add_up_to_the_whole(report):
    for result in facts(report)["results"]:
        for table, names in (("by_kind", {"chat", "code-agent"}), ("by_mode", {"non-think", "think-high"})):
            assert set(result[table]) == names
            resumed = sum(row["resumed_tokens"] for row in result[table].values())
            assert resumed == result["resumed_tokens"]


def test_tables_name_every_store_and_its_bounds(report):
    console = Console(width=250, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as shown:
        for table in tables(report):
            console.print(table)
    text = shown.get()
    for word in ("lru", "gdsf", "16.0 KiB", "64.0 KiB", "from host", "to disk", "think-high", "code-agent", "MIN"):
        assert word in text, word
    assert f"{100 * facts(report)['results'][0]['block_hit_rate']:.1f}%" in text
    assert "states" not in text.splitlines()[2]  # plain rows have none


def test_two_processes_find_what_one_does_and_tell_how_far_they_are(report):
    cells = [Cell(report.trace, outcome.settings) for outcome in report.outcomes[:3]]
    told = []
    found = run_grid(cells, processes=2, progress=lambda done, total: told.append((done, total)))
    counts = [(one.hit_blocks, one.resumed_tokens, one.host_bytes_written, one.evicted) for one in found]
    expected = [outcome.result for outcome in report.outcomes[:3]]
    assert counts == [(one.hit_blocks, one.resumed_tokens, one.host_bytes_written, one.evicted) for one in expected]
    assert told[-1] == (216, 216) and told == sorted(told)


@pytest.mark.parametrize("processes", [1, 2])
def test_what_a_simulation_refuses_reaches_the_caller(report, processes):
    wrong = SimSettings(sim_layout("plain:16", 128), 64 * KIB)
    cells = [Cell(report.trace, report.outcomes[0].settings), Cell(report.trace, wrong)]
    with pytest.raises(ConfigError, match="blocks of 128 tokens"):
        run_grid(cells, processes=processes)


def test_a_placement_is_named_as_it_is_asked_for():
    for text in ("every", "interval:1024", "ends", "ends+junctions", "none"):
        assert placement_name(Placement.parse(text)) == text
