"""`chat`: short talk without thinking, append-only.

Window 8K, as the report evaluates Non-think (V4-CACHE section 6). Answers are as long as in Azure's conversation trace,
pauses as long as Mooncake's reuse intervals (`measured.py`). A title is asked for behind the first answer by the quick
instruction `<|title|>`. Assumptions: 12 applications with system prompts of 150 to 2,000 tokens, 3.3 turns a session on
average, one prompt in twenty asked again, no documents.
"""

from __future__ import annotations

from kvstore.core.match import InferenceMode
from kvstore.sim.workloads.dialogue import Dialogue, talk
from kvstore.sim.workloads.measured import CHAT_ANSWER
from kvstore.sim.workloads.workload import Place, Workload

WINDOW = 8 << 10
HOW = Dialogue("chat", InferenceMode.NON_THINK, WINDOW, CHAT_ANSWER, goes_on=0.7, asks_again=0.05, attaches=0.0)


def session(place: Place) -> None:
    talk(place, HOW)


CHAT = Workload("chat", "Non-think, 8K window, short turns, append-only", session, sessions_a_second=1.0)
