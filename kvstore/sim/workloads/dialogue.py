"""A person talks with a model without tools: what chat, think-high and think-max have in common."""

from __future__ import annotations

from dataclasses import dataclass

from kvstore.core.match import InferenceMode
from kvstore.sim.workloads.chance import Quantiles, drawn, fixed_tokens, popular, tokens
from kvstore.sim.workloads.content import TOKEN_BYTES, Mark, made_up, shared
from kvstore.sim.workloads.measured import DOCUMENT, USER_MESSAGE, USER_PAUSE
from kvstore.sim.workloads.session import Conversation, Who
from kvstore.sim.workloads.workload import Place

SYSTEMS = 12  # applications with a system prompt each, popular by Zipf
SYSTEM_TOKENS: Quantiles = ((0.0, 150), (0.5, 500), (1.0, 2000))
DOCUMENTS = 300  # texts that users ask about, popular by Zipf
TITLE_TOKENS = 12
LEFT_TOKENS = 16 << 10  # of the window, beside documents: what does not fit is not attached


@dataclass(frozen=True, slots=True)
class Dialogue:
    """How a person and a model talk: lengths, and chances from 0 to 1."""

    kind: str
    mode: InferenceMode
    window: int
    answer: Quantiles
    goes_on: float  # one more turn follows
    asks_again: float  # the same prompt once more
    attaches: float  # the first message is about documents
    reasoning: Quantiles | None = None
    documents: Quantiles = ((0.0, 1), (1.0, 1))  # how many


def talk(place: Place, how: Dialogue) -> None:
    """One session, until the person leaves or the window is full."""
    chance = place.chance
    talked = Conversation(place.scribe, Who(place.session, how.kind, how.mode, how.window, layout=place.layout))
    talked.add(system_prompt(place, popular(chance, SYSTEMS)))
    talked.shared_until_here()
    said = b""
    if chance.random() < how.attaches:
        ranks = [popular(chance, DOCUMENTS) for _ in range(tokens(chance, how.documents))]
        said = b"".join(document(place, rank) for rank in ranks)[: (how.window - LEFT_TOKENS) * TOKEN_BYTES]
    at = place.start
    while True:
        said += _text(place, f"user {talked.turn}", tokens(chance, USER_MESSAGE))
        ended = talked.ask(at, said, *_output(place, how, talked.turn))
        if ended is None:
            return
        if talked.turn == 1:
            talked.quick(ended, Mark.TITLE, _text(place, "title", TITLE_TOKENS))
        if chance.random() < how.asks_again:
            ended = talked.ask_again(ended + drawn(chance, USER_PAUSE), *_output(place, how, talked.turn))
        if chance.random() >= how.goes_on:
            return
        at, said = ended + drawn(chance, USER_PAUSE), b""


def system_prompt(place: Place, rank: int) -> bytes:
    name = f"{place.world}/system {rank}"
    return shared(name, fixed_tokens(name, SYSTEM_TOKENS))


def document(place: Place, rank: int) -> bytes:
    name = f"{place.world}/document {rank}"
    return made_up(name, fixed_tokens(name, DOCUMENT))


def _output(place: Place, how: Dialogue, turn: int) -> tuple[bytes, bytes]:
    reasoning = tokens(place.chance, how.reasoning) if how.reasoning else 0
    drawing = place.chance.getrandbits(64)
    return (
        _text(place, f"reasoning {turn} {drawing}", reasoning),
        _text(place, f"answer {turn} {drawing}", tokens(place.chance, how.answer)),
    )


def _text(place: Place, name: str, length: int) -> bytes:
    return made_up(f"{place.session}/{name}", length)
