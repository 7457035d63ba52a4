"""`think-high`: questions that need thought, without tools, so each turn strips the reasoning of the one before it.

Window 128K and the stripping rule: V4-CACHE section 6. Pauses as in `chat`. Assumptions: reasoning of 2,000 tokens in
the median and 10,000 at p90, answers twice as long as Azure's, every third session about one of 300 documents (6,000
tokens in the median), 2.5 turns a session.
"""

from __future__ import annotations

from kvstore.core.match import InferenceMode
from kvstore.sim.workloads.dialogue import Dialogue, talk
from kvstore.sim.workloads.measured import CHAT_ANSWER, HIGH_REASONING
from kvstore.sim.workloads.workload import Place, Workload

WINDOW = 128 << 10
ANSWER = tuple((share, 2 * value) for share, value in CHAT_ANSWER)
HOW = Dialogue(
    "think-high",
    InferenceMode.THINK_HIGH,
    WINDOW,
    ANSWER,
    goes_on=0.6,
    asks_again=0.05,
    attaches=0.33,
    reasoning=HIGH_REASONING,
)


def session(place: Place) -> None:
    talk(place, HOW)


THINK_HIGH = Workload("think-high", "Think High, 128K window, reasoning stripped", session, sessions_a_second=0.3)
