"""The frozen description of a model's cache: what a block holds, byte by byte, and where it may be resumed.

Pure data with checks. Presets and builders are in `presets.py`, its fingerprint in `fingerprint.py`, the
cost of computing it in `cost.py`. Units: tokens and bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from itertools import accumulate

from kvstore.core.errors import InvalidLayout

FORMAT_VERSION = 1  # raised when the meaning of a layout field or the order of an object's bytes changes
MAX_DIMENSION = 1 << 24  # of a ComputeShape: guards the arithmetic of costs
MAX_FLOP_WEIGHT = 64
MAX_OBJECT_BYTES = 1 << 30  # a guard against nonsense layouts, far above the largest state (Pro: 5.2 MB)


class LayerKind(Enum):
    """What a layer keeps (DESIGN section 2)."""

    SWA = "swa"  # a window of raw entries and nothing else
    CSA = "csa"  # one entry and one indexer key per 4 tokens, a window, an overlap
    HCA = "hca"  # one entry per 128 tokens and a window
    FULL = "full"  # one entry per token
    RECURRENT = "recurrent"  # a state and no rows


class GroupKind(Enum):
    """How a group grows: ROWS with the tokens, STATE not at all (a snapshot at a block's end)."""

    ROWS = "rows"
    STATE = "state"


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the model, as far as its cache goes."""

    kind: LayerKind
    ratio: int = 1  # tokens per stored entry: 4 for CSA, 128 for HCA, 1 for FULL; 0 where no rows are kept
    window_tokens: int = 0  # raw attention window; 0 for a layer that writes none


@dataclass(frozen=True, slots=True)
class Section:
    """One layer's one component inside an object: `entries` data parts, then as many scale parts, no padding."""

    layer: int  # index into ModelLayout.layers
    component: str  # "csa.main", "window", ...; unique within the layer and group
    entries: int
    data_bytes: int  # per entry
    scale_bytes: int = 0  # per entry, stored after the data of all entries
    dtype: str = "bytes"  # what the bytes are, in words; part of the fingerprint

    @property
    def nbytes(self) -> int:
        return self.entries * (self.data_bytes + self.scale_bytes)


@dataclass(frozen=True, slots=True)
class Group:
    """Sections that are stored, found and evicted together, in layer order, then component order.

    Example: DeepSeek-V4 has two groups, the rows of a block and the state at its end. An `optional` group
    (MTP) never shortens a match.
    """

    name: str
    kind: GroupKind
    sections: tuple[Section, ...]
    optional: bool = False

    @property
    def nbytes(self) -> int:
        return sum(section.nbytes for section in self.sections)

    def offsets(self) -> tuple[int, ...]:
        """Byte offset of each section in the object, and the object's length last."""
        return tuple(accumulate((section.nbytes for section in self.sections), initial=0))

    def components(self) -> tuple[str, ...]:
        """Component names in order of first appearance."""
        return tuple(dict.fromkeys(section.component for section in self.sections))


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of the model whose cache this layout describes: a layer range and a KV-head range, ends excluded.

    `None` means all. Single-head layouts such as V4 are not split by tensor parallelism.
    """

    first_layer: int | None = None
    end_layer: int | None = None
    first_kv_head: int | None = None
    end_kv_head: int | None = None


@dataclass(frozen=True, slots=True)
class ComputeShape:
    """The dimensions that decide what a prefill costs; see `cost.py` for the formulas and their sources.

    The two weights say what one multiply-add costs in units of one in the model's projections (FP8 in the
    published checkpoints): 2 for BF16, 0.5 for FP4. A worker's speed is given in the same unit.
    """

    hidden: int
    heads: int
    head_dim: int  # width of one cached entry, which queries are compared with
    rope_dim: int
    q_rank: int  # 0: queries are projected at full rank
    o_groups: int
    o_rank: int  # rank of one output group; 0: one full-rank output projection
    kv_heads: int = 1
    kv_rank: int = 0  # MLA: width of the latent, which is also what values are summed over; 0: no MLA
    nope_dim: int = 0  # MLA: a query head's width without its rotary part
    v_head_dim: int = 0  # MLA: a head's width after the latent is projected up
    index_heads: int = 0
    index_dim: int = 0
    index_topk: int = 0
    routed_experts: int = 0  # all of them: the router scores each
    experts_per_token: int = 0  # routed experts a token visits
    shared_experts: int = 0
    expert_inter: int = 0
    dense_layers: int = 0  # leading layers with a dense feed-forward of width `dense_inter`
    dense_inter: int = 0
    residual_streams: int = 1  # mHC `hc_mult`; 1: an ordinary residual
    vocab: int = 0
    index_flop_weight: float = 1.0  # the indexer's scan
    core_flop_weight: float = 1.0  # attention over the selected entries

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_weight"):
                if not 0 < value <= MAX_FLOP_WEIGHT:
                    raise InvalidLayout(f"{field.name}={value} is out of range: above 0, at most {MAX_FLOP_WEIGHT}")
                object.__setattr__(self, field.name, float(value))  # 1 and 1.0 are one fingerprint
            elif not 0 <= value <= MAX_DIMENSION:
                raise InvalidLayout(f"{field.name}={value} is out of range: choose 0 to {MAX_DIMENSION}")


@dataclass(frozen=True, slots=True)
class ModelLayout:
    """What one model's cache looks like. Two workers share blocks only if their layouts are equal in every field.

    `groups[0]` holds the rows; a layout with state has one required STATE group and may have optional ones.
    """

    model: str
    revision: str  # weights revision: another checkpoint is another cache
    numerics: str  # who computed: "canonical/fp32", or engine, kernel build, dtype and chunk schedule
    canonical: bool  # rows come from whole chunks of `block_tokens` and equal a cold run's bit for bit
    block_tokens: int
    resume_alignment: int  # an engine can resume only at multiples of this
    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    window_rows: int = 0  # rows of a stored window: 128 in engines, 127 in transformers; 0 without windows
    shard: Shard = Shard()
    compute: ComputeShape | None = None
    bounded_replay: bool = False  # the model tolerates replay of one window only (approximate)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for text, name in ((self.model, "model"), (self.revision, "revision"), (self.numerics, "numerics")):
            if not text or len(text) > 200:
                raise InvalidLayout(f"layout field {name} has {len(text)} characters: give it 1 to 200")
        if not 1 <= self.block_tokens <= 65536:
            raise InvalidLayout(f"block_tokens={self.block_tokens} is out of range: choose 1 to 65536")
        if self.resume_alignment < 1 or self.resume_alignment % self.block_tokens:
            raise InvalidLayout(
                f"resume_alignment={self.resume_alignment} is not a multiple of block_tokens={self.block_tokens}"
            )
        if not 1 <= len(self.layers) <= 4096:
            raise InvalidLayout(f"{len(self.layers)} layers: a layout has 1 to 4096")
        for index, layer in enumerate(self.layers):
            keeps_rows = layer.kind in (LayerKind.CSA, LayerKind.HCA, LayerKind.FULL)
            if layer.ratio < keeps_rows or layer.window_tokens < 0:
                raise InvalidLayout(
                    f"layer {index} is {layer.kind.value} with ratio {layer.ratio} and a window of "
                    f"{layer.window_tokens} tokens: a layer that keeps rows has a ratio of at least 1"
                )
            if layer.ratio and self.block_tokens % layer.ratio:
                raise InvalidLayout(
                    f"block_tokens={self.block_tokens} is not a multiple of the ratio {layer.ratio} of layer {index}"
                )
        if not self.groups or self.groups[0].kind is not GroupKind.ROWS:
            raise InvalidLayout("groups[0] must hold the rows")
        if any(group.kind is not GroupKind.STATE for group in self.groups[1:]):
            raise InvalidLayout("a layout has one ROWS group; every other group is a STATE")
        if sum(not group.optional for group in self.groups[1:]) > 1 or len(self.groups) > 255:
            raise InvalidLayout("a layout has at most one required STATE group and at most 255 groups")
        for group in self.groups:
            self._check_group(group)

    def _check_group(self, group: Group) -> None:
        if not 0 < group.nbytes <= MAX_OBJECT_BYTES:
            raise InvalidLayout(f"group {group.name} has {group.nbytes} bytes: an object has 1 to {MAX_OBJECT_BYTES}")
        names = {(section.layer, section.component) for section in group.sections}
        if len(names) != len(group.sections):
            raise InvalidLayout(f"group {group.name} names a component of a layer twice")
        if [section.layer for section in group.sections] != sorted(section.layer for section in group.sections):
            raise InvalidLayout(f"group {group.name} is not in layer order")
        for section in group.sections:
            if not 0 <= section.layer < len(self.layers):
                raise InvalidLayout(f"section {section.component} names layer {section.layer}, which does not exist")
            if section.entries < 1 or section.data_bytes < 1 or section.scale_bytes < 0:
                raise InvalidLayout(f"section {section.component} of layer {section.layer} has no bytes")

    @property
    def rows(self) -> Group:
        return self.groups[0]

    @property
    def state_group(self) -> int | None:
        """Index of the required STATE group; None where every boundary is a resume point."""
        for index, group in enumerate(self.groups):
            if group.kind is GroupKind.STATE and not group.optional:
                return index
        return None

    @property
    def state(self) -> Group | None:
        index = self.state_group
        return None if index is None else self.groups[index]

    @property
    def replay_tokens(self) -> int | None:
        """Tokens that rebuild a missing state exactly: window * layers that write one, in whole blocks.

        Bit-equal at exactly this length and not below (measured, fp32 and fp64). None where a replay cannot
        rebuild the state: without windows, or with recurrent layers.
        """
        if self.state is None or any(layer.kind is LayerKind.RECURRENT for layer in self.layers):
            return None
        written = {section.layer for section in self.state.sections}
        windows = [self.layers[index].window_tokens for index in written if self.layers[index].window_tokens]
        if not windows:
            return None
        exact = max(windows) * len(windows)
        return -(-exact // self.block_tokens) * self.block_tokens

    @property
    def window_tokens(self) -> int:
        """Widest raw window, 0 without."""
        return max(layer.window_tokens for layer in self.layers)
