"""`rag`: one retrieval a question, the documents in front of it; the counterpart of `agentic-search`.

Three quick instructions, `<|query|>`, `<|authority|>` and `<|domain|>`, go out at once behind the bare question, as
many short branches off one prompt (V4-CACHE section 6); then the prompt with what was retrieved. Assumptions: Non-think
in an 8K to 32K prompt; 5 of 12 passages of one of 400 topics, popular by Zipf, 1,500 tokens each in the median; six in
ten questions get them in the same order, others with two neighbours exchanged, which shares what is in front of these;
one in ten gets another last passage; a third of the questions is followed by another, whose documents stand in front of
it behind the history.
"""

from __future__ import annotations

from kvstore.core.match import InferenceMode
from kvstore.sim.workloads.chance import Quantiles, drawn, fixed_tokens, popular, tokens
from kvstore.sim.workloads.content import Mark, made_up, shared
from kvstore.sim.workloads.measured import USER_PAUSE
from kvstore.sim.workloads.session import Conversation, Who
from kvstore.sim.workloads.workload import Place, Workload

WINDOW = 32 << 10
SYSTEM_TOKENS = 600
TOPICS = 400
PASSAGES = 12  # of one topic
RETRIEVED = 5
IN_ORDER = 0.6
OTHER_LAST = 0.1
GOES_ON = 0.33
PASSAGE: Quantiles = ((0.0, 300), (0.5, 1500), (0.9, 3000), (1.0, 4500))
QUESTION: Quantiles = ((0.0, 5), (0.5, 25), (0.9, 120), (1.0, 600))
ANSWER: Quantiles = ((0.0, 60), (0.5, 500), (0.9, 1300), (1.0, 3000))
QUICK_TOKENS = 16
RETRIEVAL_SECONDS = 0.8
INSTRUCTIONS = (Mark.QUERY, Mark.AUTHORITY, Mark.DOMAIN)


def session(place: Place) -> None:
    chance = place.chance
    who = Who(place.session, "rag", InferenceMode.NON_THINK, WINDOW, layout=place.layout)
    talked = Conversation(place.scribe, who)
    talked.add(shared(f"{place.world}/rag system", SYSTEM_TOKENS))
    talked.shared_until_here()
    topic, at = popular(chance, TOPICS), place.start
    while True:
        question = made_up(f"{place.session}/question {talked.turn}", tokens(chance, QUESTION))
        said = retrieved(place, topic) + question
        if not talked.has_room(said):
            return
        for mark in INSTRUCTIONS:
            talked.quick(at, mark, made_up(f"{place.session}/{mark.name}", QUICK_TOKENS), question)
        answer = made_up(f"{place.session}/answer {talked.turn}", tokens(chance, ANSWER))
        ended = talked.ask(at + RETRIEVAL_SECONDS, said, b"", answer)
        if ended is None or chance.random() >= GOES_ON:
            return
        at = ended + drawn(chance, USER_PAUSE)


def retrieved(place: Place, topic: int) -> bytes:
    """Passages of a topic, the best first."""
    ranks = list(range(RETRIEVED))
    if place.chance.random() >= IN_ORDER:
        swapped = place.chance.randrange(RETRIEVED)
        ranks[swapped] = RETRIEVED if swapped == RETRIEVED - 1 else ranks[swapped + 1]
        if swapped < RETRIEVED - 1:
            ranks[swapped + 1] = swapped
    if place.chance.random() < OTHER_LAST:
        ranks[-1] = place.chance.randrange(RETRIEVED, PASSAGES)
    return b"".join(_passage(place.world, topic, rank) for rank in ranks)


def _passage(world: str, topic: int, rank: int) -> bytes:
    name = f"{world}/topic {topic} passage {rank}"
    return shared(name, fixed_tokens(name, PASSAGE))


RAG = Workload("rag", "one retrieval a question, documents in front", session, sessions_a_second=0.5)
