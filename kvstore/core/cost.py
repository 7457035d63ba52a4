"""What a prefill costs, token by token and by position, and what loading costs instead.

Match and policies price plans with it, the CLI prints it. Pure; a `CostModel` is made once per layout and answers
in about a microsecond, so it may be asked under the store's lock. Only matrix products count, 2 FLOP a
multiply-add: softmax, norms, pooling, the indexer's ReLU and the language-model head (a prefill needs it for one
token) do not.

Formulas: DeepSeek-V4 report sections 2.2 and 2.3 (mHC, CSA, HCA, lightning indexer, grouped output projection);
MLA in its absorbed form, as V3.2 runs it on selected entries. At position n (from 0) a token sees n + 1 tokens:

    window            min(w, n+1) entries          every layer that writes one
    CSA, ratio 4      (n+1)//4 keys are scanned by the indexer, min(topk, (n+1)//4) entries attended
    HCA, ratio 128    (n+1)//128 entries attended
    FULL              n+1 attended; with an indexer n+1 scanned and min(topk, n+1) attended

so every part that grows is a sum of terms `c * min(cap, (n+1)//ratio)`, which have a closed form.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import NamedTuple, Self

from kvstore.core.keys import Tier
from kvstore.core.layout import ComputeShape, Layer, LayerKind, ModelLayout
from kvstore.core.match import Speeds

FLOP_PER_MAC = 2
BF16_WEIGHT = 2  # a BF16 multiply-add in FP8 ones, on every device that has both


@dataclass(frozen=True, slots=True)
class TokenFlops:
    """FLOP of one token, or of several, by what they are spent on."""

    projections: float = 0  # queries, keys and values, output
    batched: float = 0  # one matrix a group or head: the grouped output's first stage, MLA's absorbed products
    compressor: float = 0  # entries and gates of CSA and HCA
    indexer: float = 0  # the indexer's own projections and compressor
    index_scan: float = 0  # index queries against every key: grows with the position
    attention: float = 0  # against the window and the entries attended
    experts: float = 0  # routed, shared and dense feed-forward
    router: float = 0
    residual: float = 0  # mHC

    def parts(self) -> dict[str, float]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def total(self) -> float:
        return sum(self.parts().values())

    def plus(self, other: TokenFlops) -> TokenFlops:
        return TokenFlops(*map(operator.add, self.parts().values(), other.parts().values()))

    def times(self, factor: float) -> TokenFlops:
        return TokenFlops(*(value * factor for value in self.parts().values()))

    def weighted(self, compute: ComputeShape) -> TokenFlops:
        """In FLOP of the projections' precision, as a worker's speed is given (FP8 in the published models)."""
        return replace(
            self,
            index_scan=self.index_scan * compute.index_flop_weight,
            attention=self.attention * compute.core_flop_weight,
        )


class Growth(NamedTuple):
    """A cost of `flops` for each of `min(cap, (n + 1) // ratio)` entries at position n."""

    part: str  # field of TokenFlops
    ratio: int
    cap: int | None
    flops: int

    def at(self, position: int) -> int:
        entries = (position + 1) // self.ratio
        return self.flops * (entries if self.cap is None else min(self.cap, entries))

    def until(self, end: int) -> int:
        """Sum over positions 0 to `end - 1`, in whole numbers.

        With m = n + 1: groups of `ratio` positions see 1, 2, 3, ... entries; from `cap * ratio` on all see `cap`.
        """
        capped = 0
        if self.cap is not None and end > self.cap * self.ratio:
            capped = (end - self.cap * self.ratio) * self.cap
            end = self.cap * self.ratio
        groups, rest = divmod(end, self.ratio)
        growing = self.ratio * groups * (groups - 1) // 2 + groups * (rest + 1)
        return self.flops * (growing + capped)


@dataclass(frozen=True, slots=True)
class CostModel:
    """Prefill cost of one layout: a part every token pays and parts that grow with its position."""

    compute: ComputeShape
    fixed: TokenFlops
    growing: tuple[Growth, ...]
    fixed_weighted: float  # of one token
    growing_weights: tuple[float, ...]  # one per term of `growing`

    @classmethod
    def of(cls, layout: ModelLayout) -> Self | None:
        """None for a layout without compute dimensions."""
        compute = layout.compute
        if compute is None:
            return None
        fixed = TokenFlops()
        terms: Counter[tuple[str, int, int | None]] = Counter()
        skipped = _optional_layers(layout)
        for (layer, is_dense), count in Counter(
            (layer, index < compute.dense_layers) for index, layer in enumerate(layout.layers) if index not in skipped
        ).items():
            fixed = fixed.plus(_fixed(layer, compute, is_dense).times(count * FLOP_PER_MAC))
            for part, ratio, cap, macs in _growing(layer, compute):
                terms[part, ratio, cap] += macs * count * FLOP_PER_MAC
        growing = tuple(Growth(*term, flops) for term, flops in terms.items())
        weight = {"index_scan": compute.index_flop_weight, "attention": compute.core_flop_weight}
        weights = tuple(weight[term.part] for term in growing)
        return cls(compute, fixed, growing, fixed.weighted(compute).total, weights)

    def token(self, position: int) -> TokenFlops:
        """Plain FLOP of the token at `position` (from 0)."""
        grown: Counter[str] = Counter()
        for term in self.growing:
            grown[term.part] += term.at(position)
        return self.fixed.plus(TokenFlops(**grown))

    def span(self, start: int, end: int) -> TokenFlops:
        """Plain FLOP of the tokens in [start, end), by part."""
        grown: Counter[str] = Counter()
        for term in self.growing:
            grown[term.part] += term.until(end) - term.until(start)
        return self.fixed.times(max(0, end - start)).plus(TokenFlops(**grown)) if end > start else TokenFlops()

    def prefill_flops(self, start: int, end: int) -> float:
        """Weighted FLOP of computing the tokens in [start, end) on a cache of [0, start); 0 if there are none."""
        if end <= start:
            return 0.0
        flops = self.fixed_weighted * (end - start)
        for term, weight in zip(self.growing, self.growing_weights, strict=True):
            flops += weight * (term.until(end) - term.until(start))
        return flops

    def recompute_seconds(self, start: int, end: int, worker_flops: float | None) -> float | None:
        """None where the worker's speed (weighted FLOP a second) is unknown."""
        return self.prefill_flops(start, end) / worker_flops if worker_flops else None


def flops_per_token(layout: ModelLayout, position: int) -> TokenFlops | None:
    """Plain FLOP of the token at `position`, by part."""
    model = CostModel.of(layout)
    return None if model is None else model.token(position)


def prefill_flops(layout: ModelLayout, start: int, end: int) -> float | None:
    """Weighted FLOP of [start, end). Builds the model (tens of microseconds); a hot path keeps a `CostModel`."""
    model = CostModel.of(layout)
    return None if model is None else model.prefill_flops(start, end)


def recompute_seconds(layout: ModelLayout, start: int, end: int, worker_flops: float | None) -> float | None:
    """Seconds to compute [start, end); None where the layout or the worker does not say how fast."""
    model = CostModel.of(layout)
    return None if model is None else model.recompute_seconds(start, end, worker_flops)


def load_seconds(
    bytes_by_tier: Mapping[Tier, int], speeds: Speeds, coming: Mapping[Tier, int] = MappingProxyType({})
) -> float | None:
    """Seconds to read these bytes, one tier after another; None where a needed speed is unknown.

    In front of them the tier reads what other flows wait for: flows take turns, so of each no more than this load has
    itself. `coming` are those of the bytes that a flow is reading already; they are read once.
    """
    seconds = 0.0
    for tier, nbytes in bytes_by_tier.items():
        if not nbytes:
            continue
        speed = speeds.read_bytes_per_second.get(tier)
        if not speed:
            return None
        waiting = sum(min(queued, nbytes) for queued in speeds.queued_bytes.get(tier, ()))
        seconds += (nbytes + max(waiting - coming.get(tier, 0), 0)) / speed
    return seconds


def decode_flops(layout: ModelLayout, position: int) -> float | None:
    """FP8-equivalent FLOP of producing one token at `position`, at the precisions of DeepSeek's reference code.

    That is the weighted cost with the batched products and the head in BF16 (inference/model.py: "wo_a is FP8 in
    checkpoint ... using BF16 for simplicity"; the absorbed products of V3.2 likewise). The V4 report counts
    "single-token FLOPs (measured in equivalent FP8 FLOPs)" without saying more; this reading meets its figures.
    """
    compute = layout.compute
    token = flops_per_token(layout, position)
    if compute is None or token is None:
        return None
    return token.weighted(compute).total + (BF16_WEIGHT - 1) * token.batched + BF16_WEIGHT * head_flops(compute)


def head_flops(compute: ComputeShape) -> int:
    """FLOP of the language-model head, paid once per produced token and not by a prefill's others."""
    return FLOP_PER_MAC * compute.hidden * compute.vocab


def _fixed(layer: Layer, shape: ComputeShape, is_dense: bool) -> TokenFlops:
    """Multiply-adds of one layer that do not depend on the position."""
    hidden, heads = shape.hidden, shape.heads
    query_width = heads * (shape.nope_dim + shape.rope_dim if shape.kv_rank else shape.head_dim)
    output_width = heads * (shape.v_head_dim if shape.kv_rank else shape.head_dim)
    projections = hidden * shape.q_rank + shape.q_rank * query_width if shape.q_rank else hidden * query_width
    batched = 0
    if shape.kv_rank:
        projections += hidden * (shape.kv_rank + shape.rope_dim)
        batched += heads * shape.kv_rank * (shape.nope_dim + shape.v_head_dim)  # the latent's up-projections
    else:
        is_shared = layer.kind in (LayerKind.SWA, LayerKind.CSA, LayerKind.HCA)  # K and V are one vector
        projections += hidden * shape.kv_heads * shape.head_dim * (1 if is_shared else 2)
    if shape.o_rank:
        batched += output_width * shape.o_rank
        projections += shape.o_groups * shape.o_rank * hidden
    else:
        projections += output_width * hidden

    halves = {LayerKind.CSA: 2, LayerKind.HCA: 1}.get(layer.kind, 0)  # CSA makes an overlap half and a current one
    indexer = 0
    if _has_indexer(layer, shape):
        indexer = (shape.q_rank or hidden) * shape.index_heads * shape.index_dim + hidden * shape.index_heads
        indexer += hidden * shape.index_dim * (2 * halves or 1)
    streams = shape.residual_streams
    mixing = streams * hidden * (2 * streams + streams**2) + hidden * (2 * streams + streams**2)
    experts = shape.dense_inter if is_dense else shape.expert_inter * (shape.experts_per_token + shape.shared_experts)
    return TokenFlops(
        projections=projections,
        batched=batched,
        compressor=2 * halves * hidden * shape.head_dim,  # values and gates
        indexer=indexer,
        attention=2 * heads * shape.head_dim**2 if layer.kind is LayerKind.RECURRENT else 0,  # write and read the state
        experts=3 * hidden * experts,
        router=0 if is_dense else hidden * shape.routed_experts,
        residual=2 * mixing if streams > 1 else 0,  # around attention and around the feed-forward
    )


def _growing(layer: Layer, shape: ComputeShape) -> list[tuple[str, int, int | None, int]]:
    """(part, ratio, cap, multiply-adds an entry) of one layer."""
    entry = shape.heads * (shape.head_dim + (shape.kv_rank or shape.head_dim))  # scores, then the weighted sum
    terms: list[tuple[str, int, int | None, int]] = []
    if layer.window_tokens:
        terms.append(("attention", 1, layer.window_tokens, entry))
    if layer.kind in (LayerKind.CSA, LayerKind.HCA, LayerKind.FULL):
        topk = shape.index_topk if _has_indexer(layer, shape) else None
        terms.append(("attention", layer.ratio, topk, entry))
    if _has_indexer(layer, shape):
        terms.append(("index_scan", layer.ratio, None, shape.index_heads * shape.index_dim))
    return terms


def _has_indexer(layer: Layer, shape: ComputeShape) -> bool:
    return layer.kind in (LayerKind.CSA, LayerKind.FULL) and bool(shape.index_heads and shape.index_topk)


def _optional_layers(layout: ModelLayout) -> set[int]:
    """Layers that only an optional group stores (MTP): a prefill does without them."""
    optional = {s.layer for group in layout.groups if group.optional for s in group.sections}
    needed = {s.layer for group in layout.groups if not group.optional for s in group.sections}
    return optional - needed
