"""`code-agent`: an agent edits a repository; append-only, with tool gaps, sub-agents and compaction.

Gaps and how often work goes on are those of 676 coding sessions (MEASURED section 7): after a tool call 99.1 % go on
after 17 s in the median, after the end of a turn 85.5 % after 188 s. What a step says is as long as in the miniswe
trace (p50 98, p90 191 tokens). 512K context, at most 500 steps, all reasoning kept because there are tools: V4-CACHE
section 6. Assumptions: 14 steps a turn on average; tool results of 450 tokens in the median and 4,000 at p90; tools and
rules of 9,000 tokens the same for all, 3,000 to 8,000 more the same for all sessions in one of 30 repositories; one
step in 30 hands a task to a sub-agent, which has a shorter system prompt, 8 steps on average and a session name of its
own, while the parent waits; a prompt beyond 128K tokens is compacted: a summary of some 3,000 tokens is written behind
it and a new prompt starts with the shared parts and the summary.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvstore.core.match import InferenceMode
from kvstore.sim.workloads.chance import Quantiles, drawn, fixed_tokens, popular, tokens
from kvstore.sim.workloads.content import Mark, made_up, marked, shared
from kvstore.sim.workloads.measured import STEP_REASONING, TOOL_GAP, TURN_GAP
from kvstore.sim.workloads.session import Conversation, Who
from kvstore.sim.workloads.workload import Place, Workload

WINDOW = 512 << 10
MAX_STEPS = 500
COMPACT_ABOVE = 128 << 10
TOOL_GOES_ON = 0.991
TURN_GOES_ON = 0.855
STEPS_A_TURN = 14
SUB_STEPS = 8
HANDS_OVER = 1 / 30
REPOSITORIES = 30
TOOLS_TOKENS = 9000
SUB_TOOLS_TOKENS = 4000
SUB_GAP_SECONDS = 3.0  # the parent's wait behind the sub-agent's last answer
REPOSITORY: Quantiles = ((0.0, 3000), (1.0, 8000))
TASK: Quantiles = ((0.0, 10), (0.5, 120), (0.9, 800), (1.0, 4000))
SAID: Quantiles = ((0.0, 34), (0.1, 61), (0.5, 98), (0.9, 191), (0.99, 293), (1.0, 390))  # miniswe's outputs
RESULT: Quantiles = ((0.0, 20), (0.5, 450), (0.9, 4000), (1.0, 16_000))
SUMMARY: Quantiles = ((0.0, 1500), (0.5, 3000), (1.0, 6000))


def session(place: Place) -> None:
    repository = popular(place.chance, REPOSITORIES)
    _Agent(place, place.session, _parts(place.world, repository), may_hand_over=True).work()


def _parts(world: str, repository: int) -> tuple[bytes, ...]:
    name = f"{world}/repository {repository}"
    return (
        shared(f"{world}/code tools", TOOLS_TOKENS),
        made_up(name, fixed_tokens(name, REPOSITORY)),
    )


@dataclass
class _Agent:
    """One agent's conversations, the next after each compaction."""

    place: Place
    name: str
    parts: tuple[bytes, ...]  # in front of every prompt of it, shared with others
    may_hand_over: bool
    helpers: int = 0

    def __post_init__(self) -> None:
        kind = "code-agent" if self.may_hand_over else "sub-agent"
        self.who = Who(self.name, kind, InferenceMode.THINK_HIGH, WINDOW, has_tools=True, layout=self.place.layout)
        self.talked = self._opened(0)

    def work(self) -> None:
        """Turns of a person with pauses between, until nobody goes on or the steps are used up."""
        chance, at = self.place.chance, self.place.start
        while self.talked.turn < MAX_STEPS:
            ended = self.turn(at, made_up(f"{self.name}/task {self.talked.turn}", tokens(chance, TASK)), STEPS_A_TURN)
            if ended is None or chance.random() >= TURN_GOES_ON:
                return
            at = ended + drawn(chance, TURN_GAP)

    def turn(self, at: float, said: bytes, steps: int) -> float | None:
        """One task and its tool calls. When it is answered; None where it was given up."""
        chance = self.place.chance
        while self.talked.turn < MAX_STEPS:
            if len(self.talked) > COMPACT_ABOVE:
                at = self._compact(at)
            is_last = chance.random() < 1 / steps
            name = f"{self.name}/{self.talked.turn}"
            reasoning = made_up(f"{name}/reasoning", tokens(chance, STEP_REASONING))
            spoken = made_up(f"{name}/said", tokens(chance, SAID))
            call = b"" if is_last else marked(Mark.TOOL_CALL)
            ended = self.talked.ask(at, said, reasoning, call + spoken, "stop" if is_last else "tool_calls")
            if ended is None or is_last:
                return ended
            if chance.random() >= TOOL_GOES_ON:
                return None
            at = ended + drawn(chance, TOOL_GAP)
            if self.may_hand_over and chance.random() < HANDS_OVER:
                at = self._hand_over(ended) + SUB_GAP_SECONDS
            said = marked(Mark.TOOL_RESULT) + made_up(f"{name}/result", tokens(chance, RESULT))
        return None

    def _hand_over(self, at: float) -> float:
        """A sub-agent does a part. When it is done."""
        self.helpers += 1
        tools = (shared(f"{self.place.world}/sub-agent tools", SUB_TOOLS_TOKENS), *self.parts[1:])
        helper = _Agent(self.place, f"{self.name}/{self.helpers}", tools, may_hand_over=False)
        task = made_up(f"{helper.name}/task", tokens(self.place.chance, TASK))
        ended = helper.turn(at, task, SUB_STEPS)
        return at if ended is None else ended

    def _compact(self, at: float) -> float:
        """A summary behind the old prompt, then a new conversation that starts with it. When the summary is written."""
        chance, turn = self.place.chance, self.talked.turn
        summary = made_up(f"{self.name}/{turn}/summary", tokens(chance, SUMMARY))
        reasoning = made_up(f"{self.name}/{turn}/compaction", tokens(chance, STEP_REASONING))
        wish = shared(f"{self.place.world}/write a summary", 300)
        ended = self.talked.ask(at, wish, reasoning, summary)
        assert ended is not None  # the window is four times the size that is compacted
        self.talked = self._opened(self.talked.turn)
        self.talked.add(summary)
        return ended

    def _opened(self, turn: int) -> Conversation:
        talked = Conversation(self.place.scribe, self.who, turn)
        for part in self.parts:
            talked.add(part)
            talked.shared_until_here()
        return talked


CODE_AGENT = Workload("code-agent", "append-only, tool gaps, sub-agents, compaction", session, sessions_a_second=0.004)
