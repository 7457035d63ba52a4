"""Traces are read as they are written, whatever is wrong with them is said with its line or counted."""

import io
import itertools
import json
import random
from pathlib import Path

import pytest
import zstandard

from kvstore.codec import text
from kvstore.core.errors import InvalidInput, TraceError
from kvstore.core.match import InferenceMode
from kvstore.sim.chains import Chains
from kvstore.sim.reading import at_block_size, load_trace
from kvstore.sim.trace import Trace, TraceRequest
from kvstore.sim.writing import trace_lines

TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"
GOOD = {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]}


def real(name: str, block_tokens: int = 512) -> Trace:
    path = TRACES / f"{name}.jsonl.zst"
    if not path.exists():
        pytest.skip(f"the real trace {name} is not beside the repository")
    return load_trace(path, block_tokens)


def written(folder: Path, *rows: object) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def test_the_form_of_mooncake_is_read(tmp_path):
    later = GOOD | {"timestamp": 1500, "input_length": 1024, "hash_ids": [0, 1]}
    trace = load_trace(written(tmp_path, GOOD, later))
    assert (trace.name, trace.block_tokens, dict(trace.notes)) == ("trace", 512, {})
    assert trace.requests == [TraceRequest(0.0, 1100, 5, (0, 1, 2)), TraceRequest(1.5, 1024, 5, (0, 1))]


def test_every_optional_field_is_read(tmp_path):
    row = GOOD | {
        "session_id": "a",
        "turn": 3,
        "stop": "tool_calls",
        "kind": "code-agent",
        "mode": "think-max",
        "has_tools": True,
        "breakpoints": [900, 512],
        "output_length": 500,
        "output_ids": [9],
        "author": "ignored",
    }
    (request,) = load_trace(written(tmp_path, row)).requests
    assert request == TraceRequest(
        0.0,
        1100,
        500,
        (0, 1, 2),
        (9,),
        session="a",
        turn=3,
        stop="tool_calls",
        kind="code-agent",
        mode=InferenceMode.THINK_MAX,
        has_tools=True,
        breakpoints=(512, 900),
    )
    assert load_trace(written(tmp_path, GOOD | {"session": 18})).requests[0].session == "18"
    nothing = dict.fromkeys(("session_id", "turn", "stop", "kind", "mode", "has_tools", "breakpoints", "output_ids"))
    assert load_trace(written(tmp_path, GOOD | nothing)).requests[0] == TraceRequest(0.0, 1100, 5, (0, 1, 2))


@pytest.mark.parametrize("frames", [1, 3])
def test_zstd_is_told_by_its_bytes_whatever_the_name(tmp_path, frames):
    plain = "".join(json.dumps(GOOD | {"timestamp": n}) + "\n" for n in range(300)).encode()
    cuts = [len(plain) * part // frames for part in range(frames + 1)]
    packed = b"".join(zstandard.ZstdCompressor().compress(plain[start:end]) for start, end in itertools.pairwise(cuts))
    path = tmp_path / "trace.jsonl"
    path.write_bytes(packed)
    assert len(load_trace(path).requests) == 300
    for cut in (5, len(packed) // 2, len(packed) - 1):
        path.write_bytes(packed[:cut])
        with pytest.raises(TraceError, match=r"trace\.jsonl:\d+: zstd data is (cut off|damaged)"):
            load_trace(path)
    path.write_bytes(packed[:20] + bytes(20) + packed[40:])
    with pytest.raises(TraceError, match=r"trace\.jsonl:\d+: "):
        load_trace(path)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_lines_are_the_same_however_the_stream_is_cut(size, monkeypatch):
    monkeypatch.setattr(text, "PLAIN_BYTES", size)
    monkeypatch.setattr(text, "PACKED_BYTES", size)
    body = b"one\n\n" + b"x" * 5000 + b"\nlast"
    packed = zstandard.ZstdCompressor().compress(body)
    assert list(text.lines(io.BytesIO(body))) == body.split(b"\n")
    assert list(text.lines(io.BytesIO(packed + packed))) == (body + body).split(b"\n")
    assert list(text.lines(io.BytesIO(b""))) == []


def test_an_endless_line_is_refused(monkeypatch):
    monkeypatch.setattr(text, "MAX_LINE_BYTES", 1 << 20)
    with pytest.raises(InvalidInput, match="longer than 1 MiB"):
        list(text.lines(io.BytesIO(bytes(3 << 20))))


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ('{"timestamp": 0, "input_le', "no JSON (Unterminated string starting at): "),
        ("[" * 100_000, "no JSON (RecursionError): "),
        ("timestamp,tokens", "no JSON (Expecting value): timestamp,tokens; repair or remove the line"),
        ("[1, 2]", "no JSON object: [1, 2]; repair"),
        ("\x1b[31m\x00\r", "no JSON (Expecting value): ?[31m??; repair"),
        ('{"timestamp": ' + "9" * 5000 + "}", "no JSON (ValueError): "),
        ({"input_length": 1, "output_length": 1, "hash_ids": [0]}, "timestamp is missing"),
        ({"timestamp": 0, "output_length": 1, "hash_ids": [0]}, "input_length is missing"),
        ({"timestamp": 0, "input_length": 1, "hash_ids": [0]}, "output_length is missing"),
        ({"timestamp": 0, "input_length": 1, "output_length": 1}, "hash_ids is missing"),
        (GOOD | {"timestamp": -1}, "timestamp is -1; it takes milliseconds from 0 on"),
        (GOOD | {"timestamp": float("nan")}, "timestamp is NaN"),
        (GOOD | {"timestamp": "0"}, 'timestamp is "0"'),
        (GOOD | {"input_length": -5}, "input_length is -5; it takes a whole number from 0 to 2147483647"),
        (GOOD | {"input_length": 1.5}, "input_length is 1.5"),
        (GOOD | {"input_length": True}, "input_length is true"),
        (GOOD | {"output_length": 1 << 40}, "output_length is 1099511627776"),
        (GOOD | {"hash_ids": [0, -1, 2]}, "hash_ids is [0, -1, 2]; it takes a list of whole numbers from 0 on"),
        (GOOD | {"hash_ids": ["a"]}, 'hash_ids is ["a"]'),
        (GOOD | {"hash_ids": 7}, "hash_ids is 7"),
        (GOOD | {"hash_ids": []}, "0 hash_ids for input_length 1100; blocks of 512 tokens make 3: repair or remove"),
        (
            GOOD | {"hash_ids": list(range(9))},
            "9 hash_ids for input_length 1100; blocks of 512 tokens make 3, blocks of 128 make 9: --trace-",
        ),
        (GOOD | {"hash_ids": list(range(101))}, "101 hash_ids for input_length 1100"),
        (GOOD | {"turn": -2}, "turn is -2"),
        (GOOD | {"stop": 3}, "stop is 3; it takes a text"),
        (GOOD | {"session_id": [1]}, "session_id is [1]; it takes a text"),
        (GOOD | {"mode": "max"}, 'mode is "max"; it takes non-think, think-high, think-max'),
        (GOOD | {"has_tools": "yes"}, 'has_tools is "yes"; it takes true or false'),
        (GOOD | {"breakpoints": [1101]}, "a breakpoint at token 1101 is behind input_length 1100"),
        (GOOD | {"output_ids": [3]}, "1 output_ids, but prompt and output fill only 0 more blocks of 512 tokens"),
    ],
)
def test_a_broken_line_is_named_with_its_number(tmp_path, row, sentence):
    path = written(tmp_path, GOOD, "", GOOD, row, GOOD)
    with pytest.raises(TraceError) as caught:
        load_trace(path)
    assert str(caught.value).startswith(f"{path}:4: {sentence}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(path)) + 250


def test_files_that_are_no_trace_get_one_sentence(tmp_path):
    for path, sentence in (
        (tmp_path / "gone", "cannot be read (No such file or directory)"),
        (tmp_path, "cannot be read (Is a directory)"),
        (written(tmp_path), "no request in it"),
        (written(tmp_path, "", " "), "no request in it"),
    ):
        with pytest.raises(TraceError) as caught:
            load_trace(path)
        assert str(caught.value).startswith(f"{path}: {sentence}")
    with pytest.raises(TraceError, match="a block has at least one token"):
        load_trace(written(tmp_path, GOOD), 0)


def test_what_is_odd_but_clear_is_handled_and_counted(tmp_path):
    rows = [
        GOOD | {"timestamp": 9000, "hash_ids": [0, 1]},  # whole blocks only
        "",
        GOOD | {"timestamp": 4000},
        GOOD | {"timestamp": 6000, "input_length": 0, "hash_ids": []},
        GOOD | {"timestamp": 5000, "input_length": 100, "hash_ids": []},
    ]
    trace = load_trace(written(tmp_path, *rows))
    assert [request.at for request in trace.requests] == [0.0, 1.0, 2.0, 5.0]
    assert [request.input_tokens for request in trace.requests] == [1100, 100, 0, 1100]
    assert trace.notes == {"unsorted": 2, "blank_lines": 1, "without_partial_id": 2, "empty_prompts": 1}


def test_ids_that_are_not_chained_are_chained_and_counted(tmp_path):
    def row(*ids: int, output: tuple[int, ...] = ()) -> dict[str, object]:
        lengths = {"input_length": 512 * len(ids), "output_length": 512 * len(output)}
        return {"timestamp": 0, "hash_ids": list(ids), "output_ids": list(output)} | lengths

    trace = load_trace(
        written(tmp_path, row(1, 2, 3), row(4, 2, 3), row(1, 2, 9), row(4, 2, 3, 7), row(5, output=(5,)))
    )
    first, second, third, fourth, fifth = trace.requests
    assert (first.ids, third.ids) == ((1, 2, 3), (1, 2, 9))  # their ids stay what they were
    assert second.ids[0] == 4 and not set(second.ids[1:]) & {1, 2, 3, 4, 5, 7, 9}
    assert fourth.ids == (*second.ids, 7)
    assert fifth.ids == (5,) and fifth.output_ids[0] not in {5, *second.ids, *fourth.ids}
    assert trace.notes == {"rechained_ids": 5}


@pytest.mark.parametrize("seed", range(20))
def test_chained_ids_are_equal_exactly_where_prefixes_are(seed):
    chance = random.Random(seed)
    prompts = [[chance.randrange(4) for _ in range(chance.randrange(7))] for _ in range(60)]
    chains = Chains()
    ids = [chains.chained(prompt) for prompt in prompts]
    renamed = [chains.renamed(one) for one in ids]
    for prompt, named in zip(prompts, renamed, strict=True):
        assert len(named) == len(prompt)
        for other, other_named in zip(prompts, renamed, strict=True):
            for depth in range(1, min(len(prompt), len(other)) + 1):
                assert (named[depth - 1] == other_named[depth - 1]) == (prompt[:depth] == other[:depth])
    depths = {}
    for named in renamed:
        for depth, name in enumerate(named):
            assert depths.setdefault(name, depth) == depth


def test_blocks_are_cut_smaller():
    request = TraceRequest(0.0, 1300, 10, (3, 4, 5), breakpoints=(512,), session="s")
    cut = at_block_size(Trace("t", 512, [request], {"unsorted": 1}), 128)
    assert (cut.name, cut.block_tokens, cut.notes) == ("t", 128, {"unsorted": 1})
    assert cut.requests[0].ids == (12, 13, 14, 15, 16, 17, 18, 19, 20, 21)  # 1300 // 128 whole blocks
    assert (cut.requests[0].breakpoints, cut.requests[0].session) == ((512,), "s")
    without_partial = TraceRequest(0.0, 1300, 10, (3, 4))
    assert at_block_size(Trace("t", 512, [without_partial]), 128).requests[0].ids == tuple(range(12, 20))


def test_the_block_that_the_output_fills_has_one_name_in_prompt_and_next_prompt():
    answer = TraceRequest(0.0, 1300, 300, (3, 4, 5), (8,))
    following = TraceRequest(1.0, 1700, 1, (3, 4, 8, 9))
    first, second = at_block_size(Trace("t", 512, [answer, following]), 128).requests
    assert (*first.ids, *first.output_ids) == second.ids[:12]
    assert len(first.ids) == 1300 // 128


def test_blocks_are_grouped_larger():
    request = TraceRequest(0.0, 700, 400, tuple(range(100, 111)), tuple(range(200, 207)))
    grouped = at_block_size(Trace("t", 64, [request]), 512).requests[0]
    assert (grouped.ids, grouped.output_ids) == ((107,), (205,))
    by_two = at_block_size(Trace("t", 64, [request]), 128).requests[0]
    assert (by_two.ids, by_two.output_ids) == ((101, 103, 105, 107, 109), (201, 203, 205))


def test_cutting_and_grouping_again_shares_what_was_shared():
    chance = random.Random(5)
    chains: list[tuple[int, ...]] = [()]
    requests = []
    for name in range(200):
        chains.append((*chance.choice(chains), name))
        requests.append(TraceRequest(float(name), 512 * len(chains[-1]), 0, chains[-1]))
    trace = Trace("t", 512, requests)
    back = at_block_size(at_block_size(trace, 64), 512)
    names = {}
    for before, after in zip(trace.requests, back.requests, strict=True):
        assert len(before.ids) == len(after.ids)
        for one, other in zip(before.ids, after.ids, strict=True):
            assert names.setdefault(one, other) == other
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("wanted", [384, 500, 0, -128, 1000])
def test_sizes_that_do_not_divide_are_refused(wanted):
    with pytest.raises(TraceError, match=r"one size must divide the other; choose 128, 256, 1024, 2048"):
        at_block_size(Trace("t", 512, []), wanted)


@pytest.mark.parametrize(
    ("name", "block_tokens", "requests", "unique"),
    [
        ("mooncake_conversation", 512, 12_031, 182_790),
        ("mooncake_synthetic", 512, 3_993, 43_924),
        ("lmcache_miniswe_hashed_256B", 64, 402, None),
    ],
)
def test_real_traces_are_whole_and_chained(name, block_tokens, requests, unique):
    trace = real(name, block_tokens)
    assert len(trace.requests) == requests
    assert trace.notes.get("rechained_ids", 0) == trace.notes.get("unsorted", 0) == 0
    if unique:
        assert len({one for request in trace.requests for one in request.ids}) == unique
    for size in (block_tokens // 4, block_tokens * 2):
        for before, after in zip(trace.requests, at_block_size(trace, size).requests, strict=True):
            named = len(before.ids) * block_tokens  # miniswe has no ids of partial blocks
            assert len(after.ids) == min(named, before.input_tokens) // size


@pytest.mark.parametrize("name", ["mooncake_conversation", "lmcache_miniswe_hashed_256B"])
def test_what_is_written_is_read_back(tmp_path, name):
    trace = real(name, 64 if "lmcache" in name else 512)
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(f"{line}\n" for line in trace_lines(trace)))
    assert load_trace(path, trace.block_tokens) == trace


def test_every_field_is_written_and_read_back(tmp_path):
    requests = [
        TraceRequest(0.0, 300, 200, (0, 1, 2), (3,), "甲", 1, "stop", "chat", InferenceMode.NON_THINK, True, (128,)),
        TraceRequest(0.0015, 0, 0, ()),
        TraceRequest(3.0, 200, 1, (0, 7), mode=InferenceMode.THINK_HIGH),
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(f"{line}\n" for line in trace_lines(Trace("t", 128, requests))))
    assert load_trace(path, 128).requests == requests
