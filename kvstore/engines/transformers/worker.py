"""One request of a DeepSeek-V4 worker: look up, fetch, prefill, answer, complete canonically, put.

Exact because canonical (DESIGN section 4): prefill runs on absolute chunks of one block, in hit and miss alike, and
only rows and states of blocks that were computed as one whole chunk are put. The prompt's last part of a block and
the decoded output are recomputed in whole chunks after the answer, from the state at the last whole boundary of
the prompt.

The store never stops a request: a dead one gives an empty match, a fetch that lost objects says what is left, and
a refused put is not waited for. One thread; a `Worker` serves one request at a time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DeepseekV4ForCausalLM, DynamicCache

from kvstore.core.errors import InvalidInput
from kvstore.core.keys import Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.match import COLD_PLAN, Hints, Plan, PlanKind, Snapshots
from kvstore.engines.transformers.cache import Bytes, CacheForm, Snapshot

Tokens = NDArray[np.int32]

NO_HINTS = Hints()

_COLDER = tuple(Tier)  # nearest first


class MatchView(Protocol):
    """What the worker reads of a match."""

    @property
    def plan(self) -> Plan: ...
    @property
    def snapshots(self) -> Snapshots: ...


class BlocksView(Protocol):
    """What the worker reads of fetched blocks. Arrays are borrowed until the fetch's context ends."""

    @property
    def plan(self) -> Plan: ...
    @property
    def tier(self) -> Tier | None: ...
    @property
    def rows(self) -> Mapping[str, Bytes]: ...
    @property
    def state(self) -> Mapping[str, Bytes] | None: ...


MatchT = TypeVar("MatchT", bound=MatchView)


class Store(Protocol[MatchT]):
    """The part of `kvstore.Client` that the worker uses. None of it raises for a fault of the store."""

    @property
    def is_connected(self) -> bool: ...
    def lookup(self, tokens: Tokens, *, hints: Hints) -> AbstractContextManager[MatchT]: ...
    def fetch(self, match: MatchT) -> AbstractContextManager[BlocksView]: ...
    def put(
        self,
        tokens: Tokens,
        *,
        first_block: int,
        rows: Mapping[str, Bytes],
        states: Mapping[int, Mapping[str, Bytes]],
        hints: Hints,
    ) -> bool: ...


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
    ttft_s: float  # from the call to the first token's logits, lookup and fetch included
    answer_s: float  # to the last token
    publish_s: float  # packing, canonical completion and handing over; off the critical path

    def is_same_as(self, other: Run) -> bool:
        """The same tokens and the same bits of every logit: values would do, but that -0.0 equals 0.0."""
        bits = (run.logits.numpy().tobytes() for run in (self, other))
        return self.output == other.output and next(bits) == next(bits)


@dataclass(slots=True)
class _Progress:
    """One request's cache on its way, and what was taken while passing boundaries."""

    cache: DynamicCache
    wanted: frozenset[int] = frozenset()  # boundaries whose states are to be put
    plan: Plan = COLD_PLAN
    tier: Tier | None = None
    base: Snapshot | None = None  # the canonical cache at the last boundary passed; None at 0
    taken: dict[int, Snapshot] = field(default_factory=dict)


class Worker:
    """A model and the form of its cache."""

    def __init__(self, model: DeepseekV4ForCausalLM, layout: ModelLayout) -> None:
        self.layout = layout
        self._model = model
        self._form = CacheForm(model.config, layout, model.dtype)

    def run(
        self,
        tokens: Sequence[int] | Tokens,
        max_new_tokens: int,
        store: Store[MatchT] | None = None,
        hints: Hints = NO_HINTS,
    ) -> Run:
        """Answer a prompt with `max_new_tokens` greedy tokens, with the store's help or without any.

        InvalidInput for an empty prompt or a token outside the vocabulary.
        """
        prompt = self._checked(tokens, max_new_tokens)
        with torch.inference_mode():
            began = time.perf_counter()
            if store is None:
                at = _Progress(self._form.new_cache())
            else:
                at = self._begin(prompt, prompt.size + max_new_tokens, store, hints)
            last = self._prefill(at, prompt)
            first = time.perf_counter()
            self._publish(at, prompt, at.plan.tokens, store, hints)
            publish_s = time.perf_counter() - first
            output, logits = self._decode(at.cache, last, max_new_tokens)
            answered = time.perf_counter()
            self._complete(at, np.append(prompt, np.array(output, np.int32)), prompt.size, store, hints)
            done = time.perf_counter()
        return Run(
            output=tuple(output),
            logits=logits,
            prompt_tokens=prompt.size,
            resumed_tokens=at.plan.tokens,
            recomputed_tokens=prompt.size - at.plan.compute_from,
            plan=at.plan.kind,
            tier=at.tier,
            ttft_s=first - began,
            answer_s=answered - began - publish_s,
            publish_s=publish_s + done - answered,
        )

    def _checked(self, tokens: Sequence[int] | Tokens, max_new_tokens: int) -> Tokens:
        prompt = np.asarray(tokens)
        vocab = self._model.config.vocab_size
        if prompt.ndim != 1 or not prompt.size or not np.issubdtype(prompt.dtype, np.integer):
            raise InvalidInput("a prompt is a sequence of at least one token id")
        if prompt.min() < 0 or prompt.max() >= vocab:
            raise InvalidInput(f"tokens {prompt.min()} to {prompt.max()} leave the vocabulary of {vocab}")
        if max_new_tokens < 1:
            raise InvalidInput(f"max_new_tokens={max_new_tokens}: ask for at least one")
        return prompt.astype(np.int32)

    def _begin(self, prompt: Tokens, end_tokens: int, store: Store[MatchT], hints: Hints) -> _Progress:
        """Look up, fetch, and follow the plan of the fetch, which may be shorter than the match's."""
        with store.lookup(prompt, hints=hints) as match:
            wanted = self._wanted(match.snapshots, end_tokens)
            with store.fetch(match) as blocks:
                plan = blocks.plan
                # what was promoted between lookup and fetch was read from below all the same
                found = match.plan.tier if match.plan.tokens == plan.tokens else None
                tier = max((each for each in (found, blocks.tier) if each), key=_COLDER.index, default=None)
                if plan.kind is PlanKind.RESUME and blocks.state is not None:
                    loaded = self._form.load(plan.tokens, blocks.rows, blocks.state)
                    return _Progress(self._form.resume(loaded), wanted, plan, tier, loaded)
                if plan.kind is PlanKind.REPLAY:
                    loaded = self._form.load_for_replay(plan.compute_from, blocks.rows)
                    return _Progress(self._form.resume(loaded), wanted, plan, tier)
        return _Progress(self._form.new_cache(), wanted)

    def _wanted(self, snapshots: Snapshots, end_tokens: int) -> frozenset[int]:
        """Boundaries of the request, output included, whose states are asked for."""
        step = self.layout.resume_alignment
        regular = range(0, end_tokens + 1, snapshots.every) if snapshots.every else ()
        output_end = (end_tokens // step * step,) if snapshots.at_output_end else ()
        return frozenset(edge for edge in (*snapshots.at, *regular, *output_end) if edge and edge % step == 0)

    def _prefill(self, at: _Progress, prompt: Tokens) -> Tensor:
        """Compute the rest of the prompt on absolute chunks; logits of its last token, (1, vocab)."""
        whole = self._whole(prompt.size)
        hidden = self._pass_blocks(at, prompt, at.plan.compute_from, whole)
        if whole < prompt.size:
            hidden = self._forward(at.cache, prompt[whole:])
        assert hidden is not None  # a resume point lies below the prompt's last token
        return self._logits(hidden)

    def _pass_blocks(self, at: _Progress, tokens: Tokens, begin: int, end: int) -> Tensor | None:
        """Compute the blocks of [begin, end), each as one chunk, and take the states asked for while passing."""
        hidden = None
        for edge in range(begin + self.layout.block_tokens, end + 1, self.layout.block_tokens):
            hidden = self._forward(at.cache, tokens[edge - self.layout.block_tokens : edge])
            if edge >= at.plan.tokens:  # below it, a replay is still rebuilding the state
                at.base = self._form.snapshot(at.cache, edge)
                if edge > at.plan.tokens and edge in at.wanted:
                    at.taken[edge] = at.base
        return hidden

    def _decode(self, cache: DynamicCache, last: Tensor, max_new_tokens: int) -> tuple[list[int], Tensor]:
        output, logits = [], []
        while True:
            output.append(int(last.argmax()))
            logits.append(last)
            if len(output) == max_new_tokens:
                return output, torch.cat(logits)
            last = self._logits(self._forward(cache, np.array(output[-1:], np.int32)))

    def _complete(
        self, at: _Progress, transcript: Tokens, prompt_tokens: int, store: Store[MatchT] | None, hints: Hints
    ) -> None:
        """Recompute in whole chunks what a part of one, or decoding, has finished; put that."""
        begin, end = self._whole(prompt_tokens), self._whole(transcript.size)
        if store is None or not store.is_connected or begin == end:
            return
        at.cache = self._form.new_cache() if at.base is None else self._form.resume(at.base)
        self._pass_blocks(at, transcript, begin, end)
        self._publish(at, transcript, begin, store, hints)

    def _publish(self, at: _Progress, tokens: Tokens, begin: int, store: Store[MatchT] | None, hints: Hints) -> None:
        """Hand over the canonical rows from `begin` on, and the states taken there."""
        end = 0 if at.base is None else at.base.tokens
        if store is None or not store.is_connected or at.base is None or end <= begin:
            return
        step = self.layout.block_tokens
        rows = self._form.export_rows(at.base, begin // step, end // step)
        states = {edge: self._form.export_state(taken) for edge, taken in at.taken.items()}
        at.taken.clear()
        store.put(tokens[:end], first_block=begin // step, rows=rows, states=states, hints=hints)

    def _whole(self, tokens: int) -> int:
        return tokens // self.layout.block_tokens * self.layout.block_tokens

    def _forward(self, cache: DynamicCache, tokens: Tokens) -> Tensor:
        """Hidden state of the last of `tokens`, (1, hidden)."""
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        hidden: Tensor = self._model.model(ids, past_key_values=cache, use_cache=True).last_hidden_state
        return hidden[:, -1]

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._model.lm_head(hidden)
        return logits
