"""`kvstore simulate`: what it prints, as a table, as one object and as a plot, and what it says when asked wrongly."""

from __future__ import annotations

import json
import subprocess
import sys

import cli_runner
import pytest
import small_trace

BLOCKS = ("--block-tokens", "64", "--trace-block-tokens", "64", "--processes", "1")
PLAIN = (*BLOCKS, "--layout", "plain:16", "--ideal-space")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return small_trace.written(tmp_path_factory.mktemp("trace"))


def run(*arguments: object) -> cli_runner.Ran:
    return cli_runner.run("simulate", *arguments)


def test_json_is_one_object_with_every_combination(path):
    sizes = ("--host-bytes", "16KiB,50%", "--disk-bytes", "0,64KiB")
    code, out, _ = run(path, *PLAIN, *sizes, "--policy", "lru,gdsf", "--json")
    told = json.loads(out)
    assert code == 0 and told["trace"] == "small"
    # 194 blocks of 16 B * 64 tokens; half of them
    combinations = {(row["policy"], row["host_bytes"], row["disk_bytes"]) for row in told["results"]}
    hosts, disks = (16 << 10, 194 * 1024 // 2), (0, 64 << 10)
    assert combinations == {(name, host, disk) for name in ("lru", "gdsf") for host in hosts for disk in disks}
    assert len(told["results"]) == 8


def test_a_layout_with_states_is_tried_with_every_placement(path):
    placements = ("--placement", "every,ends+junctions,interval:128", "--no-replay")
    code, out, _ = run(path, *BLOCKS, "--host-bytes", "1GiB", *placements, "--json")
    results = json.loads(out)["results"]
    assert code == 0
    assert [row["placement"] for row in results] == ["every", "ends+junctions", "interval:128"]
    every, junctions, _ = results
    assert every["states_written"] > junctions["states_written"] > 0
    assert every["resumed_token_rate"] == pytest.approx(every["bounds"]["infinite"]["resumed_token_rate"])
    assert not any(row["replay"] for row in results)


def test_plain_rows_have_no_placements_to_try(path):
    code, out, _ = run(path, *PLAIN, "--host-bytes", "64KiB", "--placement", "every,ends", "--json")
    assert code == 0 and len(json.loads(out)["results"]) == 1


def test_blocks_of_another_size_than_the_traces(path):
    code, out, _ = run(path, "--layout", "plain:16", "--ideal-space", "--block-tokens", "128",
                       "--trace-block-tokens", "64", "--host-bytes", "64KiB", "--json")  # fmt: skip
    told = json.loads(out)
    assert code == 0 and told["block_tokens"] == 128 and told["unique_blocks"] < 194


def test_an_engine_that_resumes_at_fewer_points_resumes_less(path):
    rates = []
    for alignment in ("64", "256"):
        _, out, _ = run(path, *PLAIN, "--host-bytes", "1MiB", "--resume-alignment", alignment, "--json")
        (result,) = json.loads(out)["results"]
        rates.append(result["resumed_token_rate"])
        assert result["resumed_token_rate"] <= result["bounds"]["min"]["resumed_token_rate"]
        assert result["resumed_token_rate"] == pytest.approx(result["bounds"]["infinite"]["resumed_token_rate"])
    assert rates[1] < rates[0]


def test_a_partial_block_counts_only_where_asked(tmp_path):
    line = {"timestamp": 0, "input_length": 100, "output_length": 1, "hash_ids": [1, 2]}
    (tmp_path / "twice.jsonl").write_text(2 * (json.dumps(line) + "\n"))
    blocks = []
    for extra in ((), ("--count-partial",)):
        _, out, _ = run(tmp_path / "twice.jsonl", *PLAIN, "--host-bytes", "64KiB", *extra, "--json")
        told = json.loads(out)
        blocks.append((told["blocks"], told["results"][0]["hit_blocks"]))
    assert blocks == [(2, 1), (4, 2)]


def test_several_traces_are_one_object_each(path, tmp_path):
    other = small_trace.written(tmp_path, "other.jsonl")
    _, out, _ = run(path, other, *PLAIN, "--host-bytes", "16KiB", "--json")
    first, second = json.loads(out)["traces"]
    assert (first["trace"], second["trace"]) == ("small", "other")
    assert first["results"][0]["resumed_tokens"] == second["results"][0]["resumed_tokens"]


def test_the_table_is_whole_however_narrow_the_terminal(path, monkeypatch):
    command = [sys.executable, "-m", "kvstore.cli.main", "simulate", str(path), *BLOCKS]
    sizes = ["--host-bytes", "64MiB", "--disk-bytes", "1GiB", "--placement", "ends+junctions", "--no-replay"]
    monkeypatch.setenv("COLUMNS", "40")
    shown = subprocess.run([*command, *sizes], capture_output=True, text=True, check=True)
    assert "ends+junctions, no replay" in shown.stdout and "64.0 MiB" in shown.stdout and "1.0 GiB" in shown.stdout
    assert "…" not in shown.stdout and shown.stderr == ""


def test_a_plot_is_written_beside_the_table(path, tmp_path):
    pytest.importorskip("matplotlib")
    code, out, _ = run(path, *PLAIN, "--host-bytes", "16KiB,64KiB", "--plot", tmp_path / "hits.svg")
    assert code == 0 and "lru" in out and "MIN" in (tmp_path / "hits.svg").read_text()


def test_without_matplotlib_a_plot_is_refused_in_one_sentence(path, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "kvstore.sim.plot", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = run(path, *PLAIN, "--plot", tmp_path / "hits.svg")
    assert (code, out, err) == (2, "", "kvstore: --plot needs matplotlib: pip install 'kvstore[plot]'\n")
    assert run(path, *PLAIN, "--host-bytes", "16KiB", "--json").exit_code == 0


def test_admissions_and_budgets_are_combined_and_tiers_are_priced(path):
    tiers = ("--ideal-space", "--host-bytes", "16MiB", "--disk-bytes", "1GiB")
    options = (*BLOCKS, *tiers, "--disk-admission", "all,adaptive", "--disk-write-budget", "1GB,5TB")
    speeds = ("--host-bandwidth", "20GB", "--disk-bandwidth", "5GB", "--worker-flops", "4e14")
    code, out, _ = run(path, *options, *speeds, "--json")
    results = json.loads(out)["results"]
    assert code == 0 and [(one["disk_admission"], one["disk_write_bytes_per_day"]) for one in results] == [
        ("all", 10**9), ("all", 5 * 10**12), ("adaptive", 10**9), ("adaptive", 5 * 10**12),
    ]  # fmt: skip
    assert all(one["saved_seconds"] > 0 and sum(one["load_seconds"].values()) > 0 for one in results)
    assert all(set(one["by_kind"]) == {"chat", "code-agent"} for one in results)
    assert results[0]["disk_bytes_written"] < results[1]["disk_bytes_written"]
    _, table, _ = run(path, *options, *speeds)
    assert all(word in table for word in ("adaptive, 5 TB a day", "writes/hit", "saved"))
    _, table, _ = run(path, *BLOCKS, *tiers)
    assert "to disk goes" not in table, "one way to admit needs no column"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--policy", "lur"), "did you mean lru"),
        (("--policy", "lru,"), "--policy 'lru,' names nothing somewhere"),
        (("--placement", "always"), "placement 'always' is unknown"),
        (("--layout", "v4-flahs"), "did you mean v4-flash"),
        (("--layout", "plain:x"), "write plain:BYTES_PER_TOKEN"),
        (("--host-bytes", "4GiBs"), "--host-bytes: 4GiBs has the unknown unit"),
        (("--host-bytes", "101%"), "--host-bytes: 101% is more than there is"),
        (("--host-bytes", "0"), "--host-bytes names a size of nothing"),
        (("--disk-bytes", "-1"), "--disk-bytes: -1 is negative"),
        (("--host-bytes", "4KiB"), "are less than the 256.0 KiB that slots need"),
        (("--block-tokens", "0"), "a block has at least one token"),
        (("--block-tokens", "96"), "one size must divide the other"),
        (("--resume-alignment", "100"), "resume_alignment=100 is not a multiple"),
        (("--block-tokens", "128", "--count-partial"), "--count-partial needs blocks as the trace has them"),
        (("--disk-admission", "some"), "'some' is no admission to disk"),
        (("--disk-admission", "adaptive"), "has no budget to keep"),
        (("--disk-write-budget", "5XB"), "--disk-write-budget: 5XB has the unknown unit"),
        (("--worker-flops", "1e14"), "give --host-bandwidth too"),
        (("--plot", "hits.pdf"), "end it in .svg or .png"),
        (("--plot", "missing/hits.svg"), "there is no folder missing"),
    ],
)
def test_a_wrong_question_gets_one_plain_sentence(path, arguments, says):
    code, out, err = run(path, *BLOCKS, *arguments)
    assert (code, out) == (2, "") and err.startswith("kvstore: ") and err.count("\n") == 1
    assert says in err


def test_a_trace_that_is_not_there_or_broken_is_one_sentence(tmp_path):
    code, _, err = run(tmp_path / "none.jsonl")
    assert code == 2 and "cannot be read" in err
    (tmp_path / "broken.jsonl").write_text('{"timestamp": 0}\nnonsense\n')
    code, out, err = run(tmp_path / "broken.jsonl")
    assert (code, out) == (2, "") and "broken.jsonl:1: " in err and err.count("\n") == 1
