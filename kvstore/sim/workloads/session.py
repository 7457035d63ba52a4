"""One session of a made-up user with a V4 model: its tokens, its requests, and what the chat form keeps and strips.

The rules are V4-CACHE section 6: without thinking the history is append-only; thinking with tools keeps all reasoning
and is append-only too; thinking without tools strips the last turn's reasoning, so the next prompt parts from what is
cached right behind `<|Assistant|>`; Think Max has a preamble before the system message and shares nothing with the
other modes.

Assumed: the model writes 50 tokens a second and reads in no time. The further blocks of prompt and output
(`output_ids`) are always given, those that the next turn strips too: a worker has them, and what to keep is the store's
question.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kvstore.core.match import InferenceMode
from kvstore.core.prefix import handoff_key, hash_blocks
from kvstore.sim.trace import TraceRequest
from kvstore.sim.workloads.content import MAX_PREAMBLE, TOKEN_BYTES, Mark, marked

OUTPUT_TOKENS_A_SECOND = 50
HASH_BYTES = 32
QUICK = "quick"  # the kind of a request that is one quick instruction: a branch off a prompt's end, never continued


@dataclass
class Scribe:
    """Takes down the requests of all sessions of one trace, and gives ids to their chained hashes as they appear."""

    block_tokens: int
    requests: list[TraceRequest] = field(default_factory=list)
    _names: dict[bytes, int] = field(default_factory=dict)

    def name(self, prefix: bytes) -> int:
        return self._names.setdefault(prefix, len(self._names))


@dataclass(frozen=True, slots=True)
class Who:
    """What all requests of a session have in common."""

    session: str
    kind: str
    mode: InferenceMode
    window: int  # tokens of prompt and output together
    has_tools: bool = False
    layout: str = ""  # of the model that serves it: other layouts share no block

    @property
    def thinks(self) -> bool:
        return self.mode is not InferenceMode.NON_THINK


class Conversation:
    """Tokens so far and the names of their whole blocks. Starts with BOS, and the preamble in Think Max."""

    def __init__(self, scribe: Scribe, who: Who, turn: int = 0) -> None:
        self.who = who
        self.turn = turn  # requests so far, of quick instructions none
        self._scribe = scribe
        self._tokens = bytearray()
        self._last = [bytes(HASH_BYTES - len(who.layout)) + who.layout.encode()]  # root, then each block's hash
        self._ids: list[int] = []
        self._breakpoints: list[int] = []
        self._prompt_tokens = 0
        self._opening = 0  # where the last `<|Assistant|>` ends
        self._answer = b""  # what is kept of the last output when its reasoning is stripped
        self.add(marked(Mark.BOS), MAX_PREAMBLE if who.mode is InferenceMode.THINK_MAX else b"")

    def __len__(self) -> int:
        return len(self._tokens) // TOKEN_BYTES

    def add(self, *parts: bytes) -> None:
        for part in parts:
            self._tokens += part

    def shared_until_here(self) -> None:
        """A part that other sessions have too ends here."""
        self._breakpoints.append(len(self))

    def ask(self, at: float, said: bytes, reasoning: bytes, answer: bytes, stop: str = "stop") -> float | None:
        """A user's message, or a tool's results, and the model's output. When the output has ended, in seconds.

        None: the window has no room for this prompt, and nothing was asked. An output that does not fit is cut.
        """
        self._strip()
        if not self.has_room(said):
            return None
        self.add(marked(Mark.USER), said, marked(Mark.ASSISTANT))
        self._opening = len(self)
        self.add(marked(Mark.THINK if self.who.thinks else Mark.THINK_END))
        self._prompt_tokens = len(self)
        return self._reply(at, reasoning, answer, stop)

    def has_room(self, said: bytes) -> bool:
        """For a message of the user, its marks and the first token of an output."""
        return len(self) + len(said) // TOKEN_BYTES + 4 <= self.who.window

    def ask_again(self, at: float, reasoning: bytes, answer: bytes) -> float:
        """The same prompt once more, for another output."""
        self._cut(self._prompt_tokens)
        return self._reply(at, reasoning, answer, "stop")

    def quick(self, at: float, mark: Mark, answer: bytes, said: bytes = b"") -> None:
        """A quick instruction behind what is there, and a user's message: a branch that nobody continues.

        Nothing where the window is full.
        """
        if not self.has_room(said + answer):
            return
        have = len(self)
        self.add(marked(Mark.USER) + said if said else b"", marked(mark))
        self._write(at, answer + marked(Mark.EOS), "stop", QUICK)
        self._cut(have)

    def _reply(self, at: float, reasoning: bytes, answer: bytes, stop: str) -> float:
        self.turn += 1
        self._answer = answer + marked(Mark.EOS)
        output = (reasoning + marked(Mark.THINK_END) if self.who.thinks else b"") + self._answer
        room = (self.who.window - len(self)) * TOKEN_BYTES
        if len(output) > room:
            output, stop = output[:room], "length"
            self._answer = self._answer[: max(0, room - len(reasoning) - TOKEN_BYTES)]
        self._write(at, output, stop, self.who.kind)
        return at + len(output) / TOKEN_BYTES / OUTPUT_TOKENS_A_SECOND

    def _write(self, at: float, output: bytes, stop: str, kind: str) -> None:
        block, prompt = self._scribe.block_tokens, len(self)
        self._hash()
        ids = tuple(self._ids)
        if rest := prompt % block:
            tail = bytes(self._tokens[-rest * TOKEN_BYTES :])
            ids += (self._scribe.name(handoff_key(self._last[-1], tail, block)),)
        self.add(output)
        self._hash()
        self._scribe.requests.append(
            TraceRequest(
                round(at, 3),
                prompt,
                len(output) // TOKEN_BYTES,
                ids,
                tuple(self._ids[prompt // block :]),
                session=self.who.session,
                turn=self.turn,
                stop=stop,
                kind=f"{kind}@{self.who.layout}" if self.who.layout else kind,
                mode=self.who.mode,
                has_tools=self.who.has_tools,
                breakpoints=tuple(self._breakpoints),
            )
        )

    def _strip(self) -> None:
        if self.who.thinks and not self.who.has_tools and self._opening:
            self._cut(self._opening)
            self.add(marked(Mark.THINK_END), self._answer)

    def _cut(self, tokens: int) -> None:
        del self._tokens[tokens * TOKEN_BYTES :]
        whole = tokens // self._scribe.block_tokens
        del self._ids[whole:]
        del self._last[whole + 1 :]

    def _hash(self) -> None:
        """Names the blocks that are whole by now. Only these: cut tokens were named in vain, and cost nothing."""
        step = self._scribe.block_tokens * TOKEN_BYTES
        body = bytes(self._tokens[len(self._ids) * step :])
        hashes = hash_blocks(self._last[-1], body, self._scribe.block_tokens)
        for start in range(0, len(hashes), HASH_BYTES):
            prefix = hashes[start : start + HASH_BYTES]
            self._last.append(prefix)
            self._ids.append(self._scribe.name(prefix))
