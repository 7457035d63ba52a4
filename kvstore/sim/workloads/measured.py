"""Quantiles that several workloads draw from, and where they are from. Tokens and seconds."""

from __future__ import annotations

from kvstore.sim.workloads.chance import Quantiles

# Generated tokens of Azure's conversation trace (19,366 requests, November 2023): p10, p50, p75, p90, p99.
CHAT_ANSWER: Quantiles = ((0.0, 7), (0.1, 54), (0.5, 129), (0.75, 395), (0.9, 424), (0.99, 601), (1.0, 1000))

# Reuse intervals of Mooncake's conversation trace (MEASURED section 7): p50 114, p80 324, p90 519, p99 1578 s; the
# least one is an assumption. It bounds the user's pause from above, because a reuse is not always the next turn.
USER_PAUSE: Quantiles = ((0.0, 8), (0.5, 114), (0.8, 324), (0.9, 519), (0.99, 1578), (1.0, 3500))

# Gaps of 676 coding sessions (MEASURED section 7): after a tool call, and after the end of a turn; p50, p90, p99. The
# ends are assumptions.
TOOL_GAP: Quantiles = ((0.0, 1), (0.5, 17), (0.9, 93), (0.99, 628), (1.0, 3600))
TURN_GAP: Quantiles = ((0.0, 10), (0.5, 188), (0.9, 1973), (0.99, 12_394), (1.0, 43_200))

# Assumptions of ours; the shared documents have no lengths of messages, documents or reasoning.
USER_MESSAGE: Quantiles = ((0.0, 5), (0.5, 60), (0.9, 600), (1.0, 2500))
DOCUMENT: Quantiles = ((0.0, 1000), (0.5, 6000), (0.9, 30_000), (1.0, 60_000))
HIGH_REASONING: Quantiles = ((0.0, 100), (0.5, 2000), (0.9, 10_000), (1.0, 40_000))
MAX_REASONING: Quantiles = ((0.0, 2000), (0.5, 15_000), (0.9, 60_000), (1.0, 200_000))
STEP_REASONING: Quantiles = ((0.0, 20), (0.5, 120), (0.9, 600), (1.0, 3000))
