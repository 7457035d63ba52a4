"""Layouts ready to use, and builders for others.

`v4_flash`, `v4_pro`: DeepSeek-V4 in its own formats; `v32`: DeepSeek-V3.2, for comparison; `v4_demo`: the
three-layer model of the demo; `v4_tiny`, `full_tiny`: a few hundred bytes a block, for tests. Dimensions are from
the models' published config.json (sizes checked against the totals of the V4 report in tests/core/test_presets.py).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from kvstore.core.errors import InvalidInput, InvalidLayout
from kvstore.core.layout import ComputeShape, Group, GroupKind, Layer, LayerKind, ModelLayout, Section

CSA_RATIO = 4  # tokens per CSA entry, the report's m
HCA_RATIO = 128  # tokens per HCA entry, the report's m'
WINDOW_TOKENS = 128  # DeepSeek-V4 raw attention window; model config `sliding_window`
V4_BLOCK_TOKENS = 128  # lcm(4, 128), the smallest block that cuts no entry


@dataclass(frozen=True, slots=True)
class EntryFormat:
    """Bytes of one cached vector: data, then scales that a section keeps behind the data of all its entries."""

    data_bytes: int
    scale_bytes: int
    dtype: str


# 448 e4m3 + 64 bf16 rope; 7 UE8M0 scales (one per 64) and one byte of padding
MAIN_FP8 = EntryFormat(576, 8, "e4m3x448+bf16x64/ue8m0x7+1")
MAIN_BF16 = EntryFormat(1024, 0, "bf16x512")
INDEXER_MXFP4 = EntryFormat(64, 4, "e2m1x128/ue8m0x4")
INDEXER_FP8 = EntryFormat(128, 4, "e4m3x128/fp32")
INDEXER_BF16 = EntryFormat(256, 0, "bf16x128")


def v4(
    model: str,
    revision: str,
    kinds: Sequence[LayerKind],
    *,
    numerics: str = "canonical/fp32",
    canonical: bool = True,
    block_tokens: int = V4_BLOCK_TOKENS,
    resume_alignment: int | None = None,
    main: EntryFormat = MAIN_FP8,
    indexer: EntryFormat = INDEXER_MXFP4,
    head_dim: int = 512,
    index_dim: int = 128,
    overlap_dtype: str = "fp32",
    window_rows: int = WINDOW_TOKENS,
    mtp_layers: int = 0,
    compute: ComputeShape | None = None,
    bounded_replay: bool = False,
) -> ModelLayout:
    """A DeepSeek-V4-style layout of SWA, CSA and HCA layers: groups `rows`, `state` and, with MTP, `mtp`.

    `resume_alignment` defaults to `block_tokens` (vLLM and SGLang page V4 at 256). Overlap sections hold kv, then
    gate with bias included: `CSA_RATIO` rows of `head_dim` (or `index_dim`) each, in `overlap_dtype`.
    """
    width = {"fp32": 4, "fp64": 8, "bf16": 2}.get(overlap_dtype)
    if width is None:
        raise InvalidLayout(f"overlap dtype {overlap_dtype} is unknown: choose fp32, fp64 or bf16")
    rows: list[Section] = []
    state: list[Section] = []
    for index, kind in enumerate(kinds):
        state.append(_entries(index, "window", window_rows, main))
        if kind is LayerKind.CSA:
            rows.append(_entries(index, "csa.main", block_tokens // CSA_RATIO, main))
            rows.append(_entries(index, "csa.indexer", block_tokens // CSA_RATIO, indexer))
            kv_and_gate = f"{overlap_dtype}, kv then gate"
            state.append(Section(index, "csa.overlap", 2, CSA_RATIO * head_dim * width, 0, kv_and_gate))
            state.append(Section(index, "csa.indexer_overlap", 2, CSA_RATIO * index_dim * width, 0, kv_and_gate))
        elif kind is LayerKind.HCA:
            rows.append(_entries(index, "hca.main", block_tokens // HCA_RATIO, main))
        elif kind is not LayerKind.SWA:
            raise InvalidLayout(f"layer {index} is {kind.value}: a V4 layout has SWA, CSA and HCA layers")
    groups = [Group("rows", GroupKind.ROWS, tuple(rows)), Group("state", GroupKind.STATE, tuple(state))]
    layers = [_V4_LAYERS[kind] for kind in kinds]
    if mtp_layers:
        first = len(layers)
        layers += [_V4_LAYERS[LayerKind.SWA]] * mtp_layers
        windows = tuple(_entries(first + depth, "window", window_rows, main) for depth in range(mtp_layers))
        groups.append(Group("mtp", GroupKind.STATE, windows, optional=True))
    return ModelLayout(
        model=model,
        revision=revision,
        numerics=numerics,
        canonical=canonical,
        block_tokens=block_tokens,
        resume_alignment=resume_alignment or block_tokens,
        layers=tuple(layers),
        groups=tuple(groups),
        window_rows=window_rows,
        compute=compute,
        bounded_replay=bounded_replay,
    )


def full(
    model: str,
    revision: str,
    *,
    layers: int,
    kv_heads: int,
    head_dim: int,
    dtype: str = "bf16",
    block_tokens: int = 64,
    numerics: str = "canonical/fp32",
    canonical: bool = True,
    compute: ComputeShape | None = None,
) -> ModelLayout:
    """Ordinary attention: keys and values of every token in every layer, no state, every boundary a resume point."""
    width = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}.get(dtype)
    if width is None:
        raise InvalidLayout(f"dtype {dtype} is unknown: choose fp32, bf16, fp16 or fp8")
    entry = EntryFormat(kv_heads * head_dim * width, 0, f"{dtype}x{kv_heads}x{head_dim}")
    sections = (
        _entries(index, component, block_tokens, entry)
        for index in range(layers)
        for component in ("full.key", "full.value")
    )
    return custom(
        model,
        revision,
        layers=(Layer(LayerKind.FULL),) * layers,
        groups=(Group("rows", GroupKind.ROWS, tuple(sections)),),
        block_tokens=block_tokens,
        numerics=numerics,
        canonical=canonical,
        compute=compute,
    )


def custom(
    model: str,
    revision: str,
    *,
    layers: Sequence[Layer],
    groups: Sequence[Group],
    block_tokens: int,
    resume_alignment: int | None = None,
    numerics: str = "canonical/fp32",
    canonical: bool = True,
    window_rows: int = 0,
    compute: ComputeShape | None = None,
) -> ModelLayout:
    """Any cache that is rows that grow and, perhaps, a state; the checks are those of `ModelLayout`."""
    return ModelLayout(
        model=model,
        revision=revision,
        numerics=numerics,
        canonical=canonical,
        block_tokens=block_tokens,
        resume_alignment=resume_alignment or block_tokens,
        layers=tuple(layers),
        groups=tuple(groups),
        window_rows=window_rows,
        compute=compute,
    )


def v4_flash(
    revision: str = "base",
    *,
    numerics: str = "canonical/fp32",
    indexer: EntryFormat = INDEXER_MXFP4,
    resume_alignment: int = V4_BLOCK_TOKENS,
    mtp: bool = False,
) -> ModelLayout:
    """DeepSeek-V4-Flash: 43 layers, 2 SWA, then CSA on even and HCA on odd ones. 449,824 B a block of rows."""
    kinds = [LayerKind.SWA] * 2 + [_alternate(index) for index in range(2, 43)]
    return v4(
        "deepseek-v4-flash",
        revision,
        kinds,
        numerics=numerics,
        indexer=indexer,
        resume_alignment=resume_alignment,
        mtp_layers=int(mtp),
        compute=_FLASH_COMPUTE,
    )


def v4_pro(
    revision: str = "base",
    *,
    numerics: str = "canonical/fp32",
    indexer: EntryFormat = INDEXER_MXFP4,
    resume_alignment: int = V4_BLOCK_TOKENS,
    mtp: bool = False,
) -> ModelLayout:
    """DeepSeek-V4-Pro: 61 layers, 2 HCA, then CSA on even and HCA on odd ones. 644,024 B a block of rows."""
    kinds = [LayerKind.HCA] * 2 + [_alternate(index) for index in range(2, 61)]
    return v4(
        "deepseek-v4-pro",
        revision,
        kinds,
        numerics=numerics,
        indexer=indexer,
        resume_alignment=resume_alignment,
        mtp_layers=int(mtp),
        compute=_PRO_COMPUTE,
    )


def v32(revision: str = "base", *, numerics: str = "canonical/fp32", block_tokens: int = 64) -> ModelLayout:
    """DeepSeek-V3.2: 61 layers of MLA with a sparse indexer, 656 + 132 B a token and layer. For comparison."""
    layers = (Layer(LayerKind.FULL),) * 61
    sections = []
    for index in range(len(layers)):
        sections.append(Section(index, "full.main", block_tokens, 656, 0, "e4m3x512+bf16x64+fp32x4"))
        sections.append(Section(index, "full.indexer", block_tokens, 128, 4, "e4m3x128/fp32"))
    return custom(
        "deepseek-v3.2",
        revision,
        layers=layers,
        groups=(Group("rows", GroupKind.ROWS, tuple(sections)),),
        block_tokens=block_tokens,
        numerics=numerics,
        compute=_V32_COMPUTE,
    )


def v4_demo(revision: str = "seed-0", *, numerics: str = "canonical/fp32", overlap_dtype: str = "fp32") -> ModelLayout:
    """The demo's model: [SWA, CSA, HCA] at V4's own widths, windows of 127 rows as transformers keeps them."""
    return v4(
        "kvstore-demo-v4",
        revision,
        (LayerKind.SWA, LayerKind.CSA, LayerKind.HCA),
        numerics=numerics,
        overlap_dtype=overlap_dtype,
        window_rows=WINDOW_TOKENS - 1,
        compute=_DEMO_COMPUTE,
    )


def v4_tiny(revision: str = "base", *, block_tokens: int = 128, resume_alignment: int | None = None) -> ModelLayout:
    """V4's structure in a few hundred bytes a block, for tests of everything but the bytes' meaning."""
    entry = EntryFormat(12, 2, "test")
    return v4(
        "v4-tiny",
        revision,
        (LayerKind.SWA, LayerKind.CSA, LayerKind.HCA),
        block_tokens=block_tokens,
        resume_alignment=resume_alignment,
        main=entry,
        indexer=EntryFormat(4, 1, "test"),
        head_dim=8,
        index_dim=4,
        window_rows=8,
    )


def full_tiny(revision: str = "base", *, block_tokens: int = 16) -> ModelLayout:
    """Ordinary attention in 512 bytes a block, for tests."""
    return full("full-tiny", revision, layers=2, kv_heads=1, head_dim=8, dtype="fp8", block_tokens=block_tokens)


def preset(name: str) -> ModelLayout:
    """The layout that commands and benches know by this name; `v4-flash` and `v4_flash` are the same.

    >>> preset("v4_pro").model
    'deepseek-v4-pro'
    >>> preset("v4-prop")
    Traceback (most recent call last):
    kvstore.core.errors.InvalidInput: layout v4-prop is unknown: did you mean v4-pro?
    """
    make = PRESETS.get(name.strip().lower().replace("_", "-"))
    if make is None:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), PRESETS, n=2)
        remedy = f"did you mean {' or '.join(near)}?" if near else f"choose {', '.join(PRESETS)}"
        raise InvalidInput(f"layout {name} is unknown: {remedy}")
    return make()


def with_changes(layout: ModelLayout, **changes: object) -> ModelLayout:
    """The same layout but for the named fields, checked again."""
    return replace(layout, **changes)  # type: ignore[arg-type]


PRESETS: Mapping[str, Callable[[], ModelLayout]] = {
    "v4-flash": v4_flash,
    "v4-pro": v4_pro,
    "v32": v32,
    "v4-demo": v4_demo,
}

_V4_LAYERS = {
    LayerKind.SWA: Layer(LayerKind.SWA, ratio=0, window_tokens=WINDOW_TOKENS),
    LayerKind.CSA: Layer(LayerKind.CSA, ratio=CSA_RATIO, window_tokens=WINDOW_TOKENS),
    LayerKind.HCA: Layer(LayerKind.HCA, ratio=HCA_RATIO, window_tokens=WINDOW_TOKENS),
}

# Weights: V4 scans its FP4 indexer keys in FP4, V3.2 in FP8; attention over the entries runs in BF16 in both.
_FLASH_COMPUTE = ComputeShape(
    hidden=4096, heads=64, head_dim=512, rope_dim=64, q_rank=1024, o_groups=8, o_rank=1024,
    index_heads=64, index_dim=128, index_topk=512,
    routed_experts=256, experts_per_token=6, shared_experts=1, expert_inter=2048,
    residual_streams=4, vocab=129280, index_flop_weight=0.5, core_flop_weight=2.0,
)  # fmt: skip
_PRO_COMPUTE = ComputeShape(
    hidden=7168, heads=128, head_dim=512, rope_dim=64, q_rank=1536, o_groups=16, o_rank=1024,
    index_heads=64, index_dim=128, index_topk=1024,
    routed_experts=384, experts_per_token=6, shared_experts=1, expert_inter=3072,
    residual_streams=4, vocab=129280, index_flop_weight=0.5, core_flop_weight=2.0,
)  # fmt: skip
_V32_COMPUTE = ComputeShape(
    hidden=7168, heads=128, head_dim=576, rope_dim=64, q_rank=1536, o_groups=1, o_rank=0,
    kv_rank=512, nope_dim=128, v_head_dim=128,
    index_heads=64, index_dim=128, index_topk=2048,
    routed_experts=256, experts_per_token=8, shared_experts=1, expert_inter=2048,
    dense_layers=3, dense_inter=18432, vocab=129280, index_flop_weight=1.0, core_flop_weight=2.0,
)  # fmt: skip
_DEMO_COMPUTE = ComputeShape(
    hidden=128, heads=2, head_dim=512, rope_dim=64, q_rank=64, o_groups=2, o_rank=128,
    index_heads=32, index_dim=128, index_topk=512,
    routed_experts=2, experts_per_token=2, shared_experts=1, expert_inter=64,
    residual_streams=2, vocab=2048,
)  # fmt: skip


def _entries(layer: int, component: str, entries: int, entry: EntryFormat) -> Section:
    return Section(layer, component, entries, entry.data_bytes, entry.scale_bytes, entry.dtype)


def _alternate(index: int) -> LayerKind:
    return LayerKind.CSA if index % 2 == 0 else LayerKind.HCA
