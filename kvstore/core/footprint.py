"""How many bytes a layout's cache takes: by layer kind, by component, per token and per million tokens. Pure.

Rows grow with the tokens; a state is a snapshot of fixed size. A cache of n tokens held for reuse is the rows of
its whole blocks and one state.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from kvstore.core.keys import PAGE_BYTES
from kvstore.core.layout import Group, LayerKind, ModelLayout
from kvstore.core.presets import v32
from kvstore.core.space import LARGEST_REGION_PAGES, cut_points, slot_pages

MILLION_TOKENS = 1 << 20  # "1M" of the V4 report


@dataclass(frozen=True, slots=True)
class KindBytes:
    """What the layers of one kind keep. Bytes."""

    kind: LayerKind
    layers: int
    block_bytes: int  # rows of one block, all these layers
    bytes_per_token: float  # rows, all these layers
    layer_bytes_per_token: float  # rows, one layer
    state_bytes: int  # in the required state, all these layers


@dataclass(frozen=True, slots=True)
class ComponentBytes:
    """What one component takes in one object of its group, all layers together. Bytes."""

    group: str
    component: str
    layers: int
    object_bytes: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """The size of a layout's cache. Bytes."""

    model: str
    block_tokens: int
    kinds: tuple[KindBytes, ...]
    components: tuple[ComponentBytes, ...]
    block_bytes: int  # one rows object
    bytes_per_token: float
    state_bytes: int  # the required state at an aligned boundary; 0 where every boundary is a resume point
    optional_bytes: int  # optional groups (MTP), not in the figures above
    state_tokens: float  # tokens of rows that weigh as much as one state
    host_block_bytes: int  # a rows object in the host tier: one slot of whole pages
    host_state_bytes: int  # a state in the host tier: as many such slots as its sections need

    def cache_bytes(self, tokens: int) -> int:
        """Rows of the whole blocks of `tokens` tokens and one state; nothing below one block."""
        blocks = tokens // self.block_tokens
        return blocks * self.block_bytes + self.state_bytes if blocks else 0

    def host_bytes(self, tokens: int) -> int:
        """The same in the slots of the host tier."""
        blocks = tokens // self.block_tokens
        return blocks * self.host_block_bytes + self.host_state_bytes if blocks else 0


def footprint(layout: ModelLayout) -> Footprint:
    """
    >>> from kvstore.core.presets import v4_flash
    >>> flash = footprint(v4_flash())
    >>> flash.block_bytes, flash.bytes_per_token, flash.state_bytes
    (449824, 3514.25, 3644416)
    """
    state = layout.state
    state_bytes = state.nbytes if state else 0
    optional = sum(group.nbytes for group in layout.groups if group.optional)
    bytes_per_token = layout.rows.nbytes / layout.block_tokens
    slot_bytes = slot_pages(layout.rows.nbytes, LARGEST_REGION_PAGES) * PAGE_BYTES
    return Footprint(
        model=layout.model,
        block_tokens=layout.block_tokens,
        kinds=_by_kind(layout, state),
        components=tuple(part for group in layout.groups for part in _by_component(group)),
        block_bytes=layout.rows.nbytes,
        bytes_per_token=bytes_per_token,
        state_bytes=state_bytes,
        optional_bytes=optional,
        state_tokens=state_bytes / bytes_per_token,
        host_block_bytes=slot_bytes,
        host_state_bytes=len(cut_points(state, slot_bytes)) * slot_bytes if state else 0,
    )


def ratio_to_v32(layout: ModelLayout, tokens: int = MILLION_TOKENS) -> float:
    """Bytes of a cache of `tokens` tokens, state included, as a share of DeepSeek-V3.2's."""
    return footprint(layout).cache_bytes(tokens) / footprint(v32()).cache_bytes(tokens)


def _by_kind(layout: ModelLayout, state: Group | None) -> tuple[KindBytes, ...]:
    stored = {section.layer for group in layout.groups if not group.optional for section in group.sections}
    layers = Counter(layout.layers[index].kind for index in stored)
    rows: Counter[LayerKind] = Counter()
    states: Counter[LayerKind] = Counter()
    for section in layout.rows.sections:
        rows[layout.layers[section.layer].kind] += section.nbytes
    for section in state.sections if state else ():
        states[layout.layers[section.layer].kind] += section.nbytes
    return tuple(
        KindBytes(
            kind=kind,
            layers=layers[kind],
            block_bytes=rows[kind],
            bytes_per_token=rows[kind] / layout.block_tokens,
            layer_bytes_per_token=rows[kind] / layout.block_tokens / layers[kind],
            state_bytes=states[kind],
        )
        for kind in LayerKind
        if layers[kind]
    )


def _by_component(group: Group) -> list[ComponentBytes]:
    return [
        ComponentBytes(
            group=group.name,
            component=component,
            layers=sum(section.component == component for section in group.sections),
            object_bytes=sum(section.nbytes for section in group.sections if section.component == component),
        )
        for component in group.components()
    ]
