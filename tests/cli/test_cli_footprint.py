"""`kvstore footprint`: what it prints, as a table and as one object, and what it says when asked wrongly."""

from __future__ import annotations

import json

import cli_runner
import pytest


def run(*arguments: str) -> cli_runner.Ran:
    return cli_runner.run("footprint", *arguments)


def test_json_is_one_object_with_every_figure():
    code, out, _ = run("v4-pro", "--tokens", "1048576", "--flops", "--json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["block_bytes"], facts["bytes_per_token"], facts["state_bytes"]) == (644_024, 5031.4375, 5_174_272)
    assert facts["bytes_per_million_tokens"] == 8192 * 644_024
    assert facts["cache_bytes"] == 8192 * 644_024 + 5_174_272
    assert round(facts["ratio_to_v32"], 2) == 0.10
    assert {kind["kind"]: kind["layers"] for kind in facts["kinds"]} == {"csa": 30, "hca": 31}
    ratios = facts["flops"]["ratio_to_v32"]
    assert round(ratios["decode"], 2) == 0.27 and round(ratios["weighted"], 2) == 0.26
    positions = [row["position"] for row in facts["flops"]["by_position"]]
    assert positions == sorted(positions) and (positions[0], positions[-1]) == (0, 1_048_575)
    for row in facts["flops"]["by_position"]:
        parts = [row[name] for name in row if name not in ("position", "total", "weighted", "ratio_to_v32")]
        assert sum(parts) == row["total"]


@pytest.mark.parametrize("name", ["v4-flash", "v4_flash"])
def test_the_table_says_what_the_issue_asks(name):
    code, out, _ = run(name, "--flops")
    assert code == 0
    for figure in (
        "449,824",
        "3,514.25",
        "3,644,416",
        "4.5625",
        "7.32% of DeepSeek-V3.2",
        "13.66x",
        "10.26%",
        "450,560",
    ):
        assert figure in out, figure
    assert "the report says 7 %" in out and "the report says 10 %" in out


def test_without_flops_no_price_is_made():
    code, out, _ = run("v32", "--json")
    facts = json.loads(out)
    assert code == 0 and "flops" not in facts and facts["ratio_to_v32"] == 1 and facts["reported_at_1m"] is None


@pytest.mark.parametrize("name", ["v4-flash", "v4-pro", "v32", "v4-demo"])
@pytest.mark.parametrize("tokens", ["1", "127", "128", "2147483647"])
def test_any_length_has_an_answer(name, tokens):
    assert run(name, "--tokens", tokens, "--flops")[0] == 0
    code, out, _ = run(name, "--tokens", tokens, "--flops", "--json")
    assert code == 0 and json.loads(out)["tokens"] == int(tokens)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("v4-flahs",), "layout v4-flahs is unknown: did you mean v4-flash?"),
        (("gpt",), "layout gpt is unknown: choose v4-flash, v4-pro, v32, v4-demo"),
        (("v4-pro", "--tokens", "0"), "--tokens 0 is out of range: give 1 to 2147483647"),
        (("v4-pro", "--tokens", "-5", "--json"), "--tokens -5 is out of range: give 1 to 2147483647"),
    ],
)
def test_a_wrong_question_gets_one_plain_sentence(arguments, sentence):
    code, out, err = run(*arguments)
    assert (code, out, err) == (2, "", f"kvstore: {sentence}\n")
