"""A worker's hints go all the way: what it says of its requests decides what its objects are to the daemon."""

from __future__ import annotations

from client_tools import sample

from kvstore.core import presets
from kvstore.core.match import Hints, InferenceMode


def test_reasoning_that_the_next_turn_strips_is_scratch_in_a_real_daemon(start, connect):
    daemon = start()
    layout = presets.v4_tiny()
    client, other = connect(layout), connect(layout)
    block = layout.block_tokens
    tokens, rows, states = sample(layout, 8, states=(4 * block, 8 * block))
    said = Hints(session="a7", turn=1, mode=InferenceMode.THINK_HIGH, breakpoints=(2 * block,), prompt_tokens=5 * block)
    assert client.put(tokens, first_block=0, rows=rows, states=states, hints=said)
    assert client.flush(30)
    assert not client.flush(30, durable=True), "scratch is not written to disk, and nobody is told that it was"
    with client.lookup(tokens[: 4 * block + 1], hints=Hints(session="a7", turn=2, mode=said.mode)) as match:
        assert match.plan.tokens == 4 * block
        assert not match.snapshots.at_output_end, "the second turn's output is stripped, and no title follows"
    counters = daemon.store.status().counters
    assert counters["hit_tokens_shared"] == counters["hit_tokens_session"] == 2 * block
    assert "hit_tokens_scratch" not in counters and counters["became_shared"] == 0
    with other.lookup(tokens, hints=Hints(session="b9", mode=said.mode)) as match:
        assert match.plan.tokens == 8 * block
    counters = daemon.store.status().counters
    assert counters["hit_tokens_scratch"] == 4 * block, "counted as what it was"
    assert counters["became_shared"] == 2 + 4 + 2, "rows of all blocks behind the breakpoint, and both states"
