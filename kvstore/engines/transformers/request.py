"""One request on its way to its answer, and what it gave. Values; the computing is `worker.py`'s."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from kvstore.core.keys import Tier
from kvstore.core.lineage import ROOT_LINEAGE
from kvstore.core.match import COLD_PLAN, Hints, Plan, PlanKind
from kvstore.engines.transformers.cache import Snapshot
from kvstore.engines.transformers.stores import Tokens

NO_HINTS = Hints()


class HandoffOutcome(Enum):
    """Whether a request went on from the exact cache that another worker left."""

    NOT_ASKED = "not asked"
    TAKEN = "taken"
    MISSED = "missed"  # there was none: never left, expired, taken by somebody, or the store is away
    UNREADABLE = "unreadable"  # not of this model, these tokens or this version
    ROWS_GONE = "rows gone"  # it stood on rows that the store has no more, or of another run


@dataclass(slots=True)
class Request:
    """A prefilled prompt, and the tokens that were decoded so far.

    The cache holds the prompt and all of the output but its last token, which is fed when the next one is decoded.
    """

    prompt: Tokens
    cache: DynamicCache
    hints: Hints = NO_HINTS
    wanted: frozenset[int] = frozenset()  # boundaries whose states are to be put
    plan: Plan = COLD_PLAN
    tier: Tier | None = None
    stored_tokens: int = 0  # rows of these came out of the store ...
    lineage: bytes = ROOT_LINEAGE  # ... and have this lineage
    handoff: HandoffOutcome = HandoffOutcome.NOT_ASKED
    base: Snapshot | None = None  # the canonical cache at the last boundary passed; None at 0
    taken: dict[int, Snapshot] = field(default_factory=dict)
    first: Tensor | None = None  # logits behind the prompt's last token, (1, vocab)
    output: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)  # (1, vocab) each: the one that chose the token
    ttft_s: float = 0.0
    decode_s: float = 0.0
    publish_s: float = 0.0

    @property
    def transcript(self) -> Tokens:
        return np.append(self.prompt, np.array(self.output, np.int32))

    def result(self) -> Run:
        return Run(
            output=tuple(self.output),
            logits=torch.cat(self.logits),
            prompt_tokens=self.prompt.size,
            resumed_tokens=self.plan.tokens,
            recomputed_tokens=self.prompt.size - self.plan.compute_from,
            plan=self.plan.kind,
            tier=self.tier,
            handoff=self.handoff,
            ttft_s=self.ttft_s,
            answer_s=self.ttft_s + self.decode_s,
            publish_s=self.publish_s,
        )


@dataclass(frozen=True, slots=True)
class Run:
    """What one request gave. Tokens and seconds."""

    output: tuple[int, ...]
    logits: Tensor  # (len(output), vocab): row i chose output[i]; row 0 is the first token's
    prompt_tokens: int
    resumed_tokens: int  # rows of these were loaded
    recomputed_tokens: int  # of the prompt: all but the resumed ones, and those of a replay
    plan: PlanKind
    tier: Tier | None  # the coldest that was read
    handoff: HandoffOutcome  # only TAKEN goes on bit for bit where decoding was stopped
    ttft_s: float  # from the call to the first token's logits, lookup and fetch included
    answer_s: float  # to the last token, without what was published in between
    publish_s: float  # packing, canonical completion and handing over; off the critical path

    def is_same_as(self, other: Run) -> bool:
        """The same tokens and the same bits of every logit: values would do, but that -0.0 equals 0.0."""
        bits = (run.logits.numpy().tobytes() for run in (self, other))
        return self.output == other.output and next(bits) == next(bits)
