"""States that nobody asked for, where host memory is free anyway: a request that leaves the path between resumes there.

They are taken only out of room that nothing has to leave for, go first when it is needed (`fading.py`), and cost a
request no more host bytes than its rows do. Without them a path that is left between two states is computed again from
the upper one, or replayed: a window of every layer.
"""

from __future__ import annotations

from kvstore.core.layout import ModelLayout
from kvstore.core.match import Match

SPARE_SHARE = 2  # times what the request puts: whoever comes next finds room, too
MOST = 16  # of one request: a snapshot interrupts its prefill ...
LEAST_STEP = 2048  # ... which engines cut into steps of 2,048 to 8,192 tokens anyway


def speculative_boundaries(layout: ModelLayout, match: Match, prompt_tokens: int, spare_bytes: int) -> list[int]:
    """Token counts between the plan and the prompt's end, evenly spread; `spare_bytes` of the host are free."""
    state, snapshots, alignment = layout.state, match.snapshots, layout.resume_alignment
    if state is None or snapshots.every:
        return []
    first = max(match.plan.tokens, min(match.rows_tokens, prompt_tokens) // alignment * alignment)
    end = prompt_tokens - prompt_tokens % alignment
    rows_bytes = max(prompt_tokens - match.plan.tokens, 0) // layout.block_tokens * layout.rows.nbytes
    needed = rows_bytes + (len(snapshots.at) + 1) * state.nbytes
    budget = min(rows_bytes, spare_bytes - SPARE_SHARE * needed)
    count = min(MOST, budget // state.nbytes, (end - first) // LEAST_STEP)
    wanted = {first + (end - first) * (number + 1) // (count + 1) // alignment * alignment for number in range(count)}
    return sorted(tokens for tokens in wanted - set(snapshots.at) if first < tokens < end)
