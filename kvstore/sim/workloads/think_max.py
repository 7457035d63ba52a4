"""`think-max`: the hardest questions, with all the effort that the model has.

Window 384K, a preamble before the system message (so nothing is shared with the other modes, same system prompts and
documents or not), reasoning stripped as without tools: V4-CACHE section 6. Pauses as in `chat`. Assumptions: reasoning
of 15,000 tokens in the median, 60,000 at p90 and 200,000 at most; half of the sessions about a folder of the 300
documents (3 in the median, 15 at p90, as many as the window holds); 1.7 turns.
"""

from __future__ import annotations

from kvstore.core.match import InferenceMode
from kvstore.sim.workloads.dialogue import Dialogue, talk
from kvstore.sim.workloads.measured import MAX_REASONING
from kvstore.sim.workloads.think_high import ANSWER
from kvstore.sim.workloads.workload import Place, Workload

WINDOW = 384 << 10
HOW = Dialogue(
    "think-max",
    InferenceMode.THINK_MAX,
    WINDOW,
    ANSWER,
    goes_on=0.4,
    asks_again=0.05,
    attaches=0.5,
    reasoning=MAX_REASONING,
    documents=((0.0, 1), (0.5, 3), (0.9, 15), (1.0, 50)),
)


def session(place: Place) -> None:
    talk(place, HOW)


THINK_MAX = Workload("think-max", "Think Max, 384K window, its preamble in front", session, sessions_a_second=0.05)
