"""Requests of a DeepSeek-V4 worker: look up, fetch, prefill, decode, complete canonically, put; hand over, take over.

Exact because canonical (DESIGN section 4): prefill runs on absolute chunks of one block, in hit and miss alike, and
only rows and states of blocks that were computed as one whole chunk are put. The prompt's last part of a block and
the decoded output are recomputed in whole chunks after the answer, from the state at the last whole boundary of
the prompt.

A request can be handed over at any token: `start`, `decode` some, `hand_over` here; `take_over` or `resume` there, with
the transcript. What goes on from the exact cache gives the bits of the run that was never stopped. What does not find
it is an ordinary run of the transcript, whose last bits may differ, because decoding is not prefilling: `Run.handoff`
says so.

The store never stops a request: a dead one gives an empty match, a fetch that lost objects says what is left, and
a refused put is not waited for. One thread; a `Worker` computes for one request at a time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import DeepseekV4ForCausalLM, DynamicCache

from kvstore.core.cost import CostModel
from kvstore.core.errors import InvalidInput
from kvstore.core.keys import Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.lineage import ROOT_LINEAGE
from kvstore.core.match import Hints, Plan, PlanKind, Snapshots
from kvstore.engines.transformers import handoff
from kvstore.engines.transformers.cache import CacheForm
from kvstore.engines.transformers.request import NO_HINTS, HandoffOutcome, Request, Run
from kvstore.engines.transformers.speed import PrefillSpeed
from kvstore.engines.transformers.stores import BlocksView, HandoffStore, MatchT, Store, Tokens

HANDOFF_SECONDS = 10.0  # how long another worker may take to come for it
CARRY_BYTES = 4 << 20  # rows up to here go along in a handoff: fetching them takes another two calls, as long as 4 MB

_COLDER = tuple(Tier)  # nearest first


class Worker:
    """A model and the form of its cache."""

    def __init__(self, model: DeepseekV4ForCausalLM, layout: ModelLayout, *, declares_speed: bool = False) -> None:
        """With `declares_speed` lookups say how fast this worker prefills: a hit that would take longer is left out."""
        self.layout = layout
        self.speed = PrefillSpeed(CostModel.of(layout))
        self._declares_speed = declares_speed
        self._model = model
        self._form = CacheForm(model.config, layout, model.dtype)
        self.handoffs: Counter[HandoffOutcome] = Counter()  # how those that were asked for ended

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
        request = self.start(tokens, max_new_tokens, store, hints)
        self.decode(request, max_new_tokens)
        return self.finish(request, store)

    def start(
        self,
        tokens: Sequence[int] | Tokens,
        max_new_tokens: int,
        store: Store[MatchT] | None = None,
        hints: Hints = NO_HINTS,
    ) -> Request:
        """Prefill a prompt, and put what that made. `max_new_tokens` says where the output is expected to end."""
        prompt = self._checked(tokens, max_new_tokens)
        with torch.inference_mode():
            began = time.perf_counter()
            if store is None:
                request = Request(prompt, self._form.new_cache(), hints)
                request.first = self._prefill(request)
            else:
                if self._declares_speed:
                    store.worker_flops = self.speed.flops_per_second
                with store.lookup(prompt, hints=hints) as match:
                    request = self._begin(prompt, prompt.size + max_new_tokens, store, match, hints)
                    request.first = self._prefill(request, lambda computed: self._jump(request, store, match, computed))
            request.ttft_s = time.perf_counter() - began
            self._publish(request, prompt, request.plan.tokens, store)
            request.publish_s = time.perf_counter() - began - request.ttft_s
        return request

    def decode(self, request: Request, count: int) -> None:
        """Append `count` greedy tokens to the output."""
        began = time.perf_counter()
        with torch.inference_mode():
            for _ in range(count):
                if request.output:
                    last = self._logits(self._forward(request.cache, np.array(request.output[-1:], np.int32)))
                else:
                    assert request.first is not None
                    last = request.first
                request.output.append(int(last.argmax()))
                request.logits.append(last)
        request.decode_s += time.perf_counter() - began

    def finish(self, request: Request, store: Store[MatchT] | None = None) -> Run:
        """The answer is whole: complete canonically what it finished, and put that."""
        began = time.perf_counter()
        with torch.inference_mode():
            self._complete(request, store)
        request.publish_s += time.perf_counter() - began
        return request.result()

    def hand_over(
        self,
        request: Request,
        store: HandoffStore[MatchT],
        ttl_seconds: float = HANDOFF_SECONDS,
        carry_bytes: int = CARRY_BYTES,
    ) -> bool:
        """Leave the request's exact cache for whoever takes over `request.transcript`; whether it is there.

        The request stays as it is: it may go on here. Rows from the store of more than `carry_bytes` are left there.
        """
        if not request.output:
            raise InvalidInput("nothing was decoded yet: the first token of the output is the prefill's to choose")
        base = request.stored_tokens
        if base // self.layout.block_tokens * self.layout.rows.nbytes <= carry_bytes:
            base = 0
        held = request.transcript[:-1]
        with torch.inference_mode():
            snapshot = self._form.snapshot(request.cache, held.size)
            lineage = request.lineage if base else ROOT_LINEAGE
            payload = handoff.pack(self._form, snapshot, base, lineage)
        return store.put_handoff(held, payload, ttl_seconds)

    def resume(
        self,
        transcript: Sequence[int] | Tokens,
        max_new_tokens: int,
        store: HandoffStore[MatchT],
        hints: Hints = NO_HINTS,
    ) -> Run:
        """Go on from where another worker stopped, to the end; see `take_over`."""
        request = self.take_over(transcript, max_new_tokens, store, hints)
        self.decode(request, max_new_tokens)
        return self.finish(request, store)

    def take_over(
        self,
        transcript: Sequence[int] | Tokens,
        max_new_tokens: int,
        store: HandoffStore[MatchT],
        hints: Hints = NO_HINTS,
    ) -> Request:
        """What another worker handed over: its prompt and output so far, the last token of which was not fed yet.

        Without the exact cache it is an ordinary start; `Request.handoff` says why.
        """
        tokens = self._checked(transcript, max_new_tokens)
        request = self._taken(tokens, store, hints)
        outcome = request if isinstance(request, HandoffOutcome) else HandoffOutcome.TAKEN
        self.handoffs[outcome] += 1
        if isinstance(request, HandoffOutcome):
            request = self.start(tokens, max_new_tokens, store, hints)
        request.handoff = outcome
        return request

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

    def _begin(self, prompt: Tokens, end_tokens: int, store: Store[MatchT], match: MatchT, hints: Hints) -> Request:
        """Fetch, and follow the plan of the fetch, which may be shorter than the match's."""
        request = Request(prompt, self._form.new_cache(), hints, self._wanted(match.snapshots, end_tokens))
        with store.fetch(match) as blocks:
            # what was promoted between lookup and fetch was read from below all the same
            found = match.plan.tier if match.plan.tokens == blocks.plan.tokens else None
            self._load(request, blocks, found)
        return request

    def _load(self, at: Request, blocks: BlocksView, found: Tier | None) -> bool:
        """Go on from fetched blocks, where there are any: whether there are. `found`: where the match saw them."""
        plan = blocks.plan
        if plan.kind is PlanKind.RESUME and blocks.state is not None:
            at.base = self._form.load(plan.tokens, blocks.rows, blocks.state)
            at.cache = self._form.resume(at.base)
        elif plan.kind is PlanKind.REPLAY:
            at.base = None
            at.cache = self._form.resume(self._form.load_for_replay(plan.compute_from, blocks.rows))
        else:
            return False
        at.plan, at.stored_tokens, at.lineage = plan, plan.tokens, blocks.lineage
        at.tier = max((each for each in (found, blocks.tier) if each), key=_COLDER.index, default=None)
        at.taken.clear()  # below what is stored: others have been there
        return True

    def _jump(self, at: Request, store: Store[MatchT], match: MatchT, computed: int) -> bool:
        """Go on from a deeper point, where a load that was given up has brought one in meanwhile."""
        blocks = store.catch_up(match, computed)
        if blocks is None:
            return False
        with blocks as deeper:
            return self._load(at, deeper, match.plan.tier)

    def _taken(self, transcript: Tokens, store: HandoffStore[MatchT], hints: Hints) -> Request | HandoffOutcome:
        """The request as it was left, its next token's logits computed; why not, where it cannot be had."""
        held = transcript[:-1]
        began = time.perf_counter()
        payload = store.take_handoff(held) if held.size else None
        if payload is None:
            return HandoffOutcome.MISSED
        with torch.inference_mode():
            handed = handoff.unpack(self._form, payload, held.size)
            if handed is None:
                return HandoffOutcome.UNREADABLE
            rows, tier = None, Tier.HOST
            if handed.base:
                # one token more than the rows, for there is no resuming where no token is left to compute
                with store.lookup(held[: handed.base + 1], hints=hints) as match, store.fetch(match) as blocks:
                    if blocks.plan.tokens != handed.base or blocks.lineage != handed.lineage:
                        return HandoffOutcome.ROWS_GONE
                    rows, tier = self._form.load_rows(blocks.rows), blocks.tier or tier
            plan = Plan(PlanKind.RESUME, held.size, held.size, payload.nbytes, tier, None, None)
            cache = self._form.resume(handed.on(rows))
            request = Request(
                transcript, cache, hints, plan=plan, tier=tier, stored_tokens=handed.base, lineage=handed.lineage
            )
            request.first = self._logits(self._forward(cache, transcript[-1:]))
        request.ttft_s = time.perf_counter() - began
        return request

    def _wanted(self, snapshots: Snapshots, end_tokens: int) -> frozenset[int]:
        """Boundaries of the request, output included, whose states are asked for."""
        step = self.layout.resume_alignment
        regular = range(0, end_tokens + 1, snapshots.every) if snapshots.every else ()
        output_end = (end_tokens // step * step,) if snapshots.at_output_end else ()
        return frozenset(edge for edge in (*snapshots.at, *regular, *output_end) if edge and edge % step == 0)

    def _prefill(self, at: Request, jump: Callable[[int], bool] | None = None) -> Tensor:
        """Compute the rest of the prompt on absolute chunks; logits of its last token, (1, vocab)."""
        prompt = at.prompt
        whole = self._whole(prompt.size)
        hidden = self._pass_blocks(at, prompt, at.plan.compute_from, whole, jump)
        if whole < prompt.size:
            hidden = self._forward(at.cache, prompt[whole:])
        assert hidden is not None  # a resume point lies below the prompt's last token
        return self._logits(hidden)

    def _pass_blocks(
        self, at: Request, tokens: Tokens, begin: int, end: int, jump: Callable[[int], bool] | None = None
    ) -> Tensor | None:
        """Compute the blocks of [begin, end), each as one chunk, and take the states asked for while passing.

        `jump` is told after each how far it is; True: the request goes on from its plan.
        """
        hidden, edge = None, begin
        while edge < end:
            began = time.perf_counter()
            hidden = self._forward(at.cache, tokens[edge : edge + self.layout.block_tokens])
            self.speed.note(edge, edge + self.layout.block_tokens, time.perf_counter() - began)
            edge += self.layout.block_tokens
            if jump is not None and edge < end and jump(edge):
                edge = at.plan.compute_from
                continue
            if edge >= at.plan.tokens:  # below it, a replay is still rebuilding the state
                at.base = self._form.snapshot(at.cache, edge)
                if edge > at.plan.tokens and edge in at.wanted:
                    at.taken[edge] = at.base
        return hidden

    def _complete(self, at: Request, store: Store[MatchT] | None) -> None:
        """Recompute in whole chunks what a part of one, or decoding, has finished; put that."""
        transcript = at.transcript
        begin, end = self._whole(at.prompt.size), self._whole(transcript.size)
        if store is None or not store.is_connected:
            return
        if at.handoff is HandoffOutcome.TAKEN:  # what is canonical of it is in the store, if anywhere
            with store.lookup(transcript, hints=at.hints) as match:
                again = self._begin(transcript, transcript.size, store, match, at.hints)
            self._pass_blocks(again, transcript, again.plan.compute_from, end)
            self._publish(again, transcript, again.plan.tokens, store)
        elif begin < end:
            at.cache = self._form.new_cache() if at.base is None else self._form.resume(at.base)
            self._pass_blocks(at, transcript, begin, end)
            self._publish(at, transcript, begin, store)

    def _publish(self, at: Request, tokens: Tokens, begin: int, store: Store[MatchT] | None) -> None:
        """Put the canonical rows from `begin` on, and the states taken there."""
        end = 0 if at.base is None else at.base.tokens
        if store is None or not store.is_connected or at.base is None or end <= begin:
            return
        step = self.layout.block_tokens
        rows = self._form.export_rows(at.base, begin // step, end // step)
        states = {edge: self._form.export_state(taken) for edge, taken in at.taken.items()}
        at.taken.clear()
        hints = replace(at.hints, prompt_tokens=at.prompt.size)
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
