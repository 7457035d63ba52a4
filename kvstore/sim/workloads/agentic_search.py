"""`agentic-search`: the model searches until it knows enough; each result becomes a part of an append-only prompt.

16.2 tool calls a query on average: the model's report. Thinking with tools keeps all reasoning, so the
history is append-only; 512K context and at most 500 steps for search agents: V4-CACHE section 6. Assumptions: one call
a request; the number of calls spreads as a Poisson whose mean is gamma distributed (shape 2); results of 700 tokens in
the median, 3,000 at p90 (a list of hits, or a page); tools and system prompt of 3,500 tokens, the same for all; a
result takes 1.5 s in the median; 40 % of answers are followed by another query; of 500 queries the popular ones are
asked by many.
"""

from __future__ import annotations

from kvstore.core.match import InferenceMode
from kvstore.sim.workloads.chance import Quantiles, drawn, fixed_tokens, poisson, popular, tokens
from kvstore.sim.workloads.content import Mark, made_up, marked, shared
from kvstore.sim.workloads.measured import STEP_REASONING, USER_PAUSE
from kvstore.sim.workloads.session import Conversation, Who
from kvstore.sim.workloads.workload import Place, Workload

WINDOW = 512 << 10
MAX_STEPS = 500
TOOL_CALLS_A_QUERY = 16.2
CALLS_SHAPE = 2.0
SYSTEM_TOKENS = 3500
QUERIES = 500  # distinct first questions, popular by Zipf
QUERY: Quantiles = ((0.0, 5), (0.5, 25), (0.9, 120), (1.0, 600))
CALL: Quantiles = ((0.0, 25), (0.5, 50), (1.0, 200))
RESULT: Quantiles = ((0.0, 150), (0.5, 700), (0.9, 3000), (1.0, 10_000))
RESULT_SECONDS: Quantiles = ((0.0, 0.3), (0.5, 1.5), (0.9, 5), (1.0, 30))
ANSWER: Quantiles = ((0.0, 150), (0.5, 700), (0.9, 1800), (1.0, 5000))
GOES_ON = 0.4


def session(place: Place) -> None:
    chance = place.chance
    mode = InferenceMode.THINK_HIGH
    who = Who(place.session, "agentic-search", mode, WINDOW, has_tools=True, layout=place.layout)
    talked = Conversation(place.scribe, who)
    talked.add(shared(f"{place.world}/search tools", SYSTEM_TOKENS))
    talked.shared_until_here()
    name = f"{place.world}/query {popular(chance, QUERIES)}"
    said = made_up(name, fixed_tokens(name, QUERY))
    at = place.start
    while True:
        ended = _answered(place, talked, at, said)
        if ended is None or chance.random() >= GOES_ON:
            return
        said = made_up(f"{place.session}/query {talked.turn}", tokens(chance, QUERY))
        at = ended + drawn(chance, USER_PAUSE)


def calls(place: Place) -> int:
    """Tool calls of one query."""
    chance = place.chance
    return min(MAX_STEPS - 1, poisson(chance, chance.gammavariate(CALLS_SHAPE, TOOL_CALLS_A_QUERY / CALLS_SHAPE)))


def _answered(place: Place, talked: Conversation, at: float, said: bytes) -> float | None:
    """One query, its searches and its answer. When it is answered; None where the window was full before that."""
    chance = place.chance
    left = calls(place)
    while True:
        name = f"{place.session}/{talked.turn}"
        reasoning = made_up(f"{name}/reasoning", tokens(chance, STEP_REASONING))
        if not left:
            return talked.ask(at, said, reasoning, made_up(f"{name}/answer", tokens(chance, ANSWER)))
        call = marked(Mark.TOOL_CALL) + made_up(f"{name}/call", tokens(chance, CALL))
        ended = talked.ask(at, said, reasoning, call, "tool_calls")
        if ended is None:
            return None
        said = marked(Mark.TOOL_RESULT) + made_up(f"{name}/result", tokens(chance, RESULT))
        at, left = ended + drawn(chance, RESULT_SECONDS), left - 1


AGENTIC_SEARCH = Workload(
    "agentic-search", "16.2 tool calls a query, append-only, results cached", session, sessions_a_second=0.1
)
