"""Disk to host: a frame's payload goes from the device straight into the object's slots and is verified there.

Raw frames need no copy: their payload is the object, behind a head whose length the layout's sections tell, and a slot
is whole pages. What is not so (compressed, smaller than 64 KiB, another version's offset) is read and decoded.
By layers, the same bytes are read in groups of consecutive layers, and each group's sections verified when it is here.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

from kvstore.codec.frame import decode_frame
from kvstore.codec.frame_in_place import (
    RawHead,
    SectionChecks,
    head_bytes,
    read_head,
    section_checks,
    verify_payload,
    verify_sections,
)
from kvstore.core.actions import Copy
from kvstore.core.descriptor import filling_word
from kvstore.core.errors import CorruptFrame, TierFault
from kvstore.core.keys import PAGE_BYTES, Tier
from kvstore.core.layout import Group
from kvstore.store.moving import Described, Reports
from kvstore.store.promotions import Promotion, Promotions, Step
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.host import HostTier

GROUP_BYTES = 128 << 10  # read at once by layers, at least: 64 KiB reads get half the device (MEASURED section 1)


class LayerGroup(NamedTuple):
    """Consecutive layers of an object, read together."""

    first: int  # section
    end: int  # section behind the last
    start_byte: int  # of the object; whole pages: its first section may start on the last page of the group before
    end_byte: int
    layers: int  # leading layers that are whole with it


class _ByLayers(NamedTuple):
    """A promotion that is loaded by layers, once its head is verified."""

    head: RawHead
    checks: SectionChecks
    room: memoryview  # the slot, in whole pages
    payload: memoryview  # the object in it
    groups: tuple[LayerGroup, ...]


class Promoter:
    """Does steps of promotions. Any thread, each another step."""

    def __init__(self, host: HostTier, disk: DiskTier, reports: Reports, promotions: Promotions) -> None:
        self._host = host
        self._disk = disk
        self._reports = reports
        self._promotions = promotions
        self._by_layers: dict[int, _ByLayers] = {}  # by number of the promotion, until it ends
        self._groups: dict[tuple[bytes, int], tuple[LayerGroup, ...]] = {}  # by namespace and group

    def do(self, step: Step) -> int:
        """Do a step: how many bytes came from disk. What does not verify is reported as lost and marked failed."""
        promotion, copy = step.promotion, step.promotion.copy
        if promotion.has_failed:
            return 0
        try:
            if step.group:
                return self._load_group(promotion, self._by_layers[promotion.number], step.group)
            described = self._reports.describe(copy.facts.namespace)
            if copy.layers and (nbytes := self._first_group(promotion, described)):
                return nbytes
            self._load_whole(copy, described)
        except (CorruptFrame, TierFault) as fault:
            promotion.has_failed = True
            self._reports.lost(copy.facts, Tier.DISK, str(fault))
            return 0
        return copy.source_bytes

    def finish(self, promotion: Promotion) -> bool:
        """All steps of a promotion are done: whether the object is whole in its slots."""
        by_layers = self._by_layers.pop(promotion.number, None)
        if by_layers is not None and not promotion.has_failed:
            try:
                verify_payload(by_layers.head, [by_layers.payload])
            except CorruptFrame as fault:
                promotion.has_failed = True
                self._reports.lost(promotion.copy.facts, Tier.DISK, str(fault))
        return not promotion.has_failed

    # -- whole objects --------------------------------------------------------------------------
    def _load_whole(self, copy: Copy, described: Described) -> None:
        """CorruptFrame, TierFault."""
        facts, page = copy.facts, copy.source_slots[0]
        group, ends = described.layout.groups[facts.key.group], described.cuts[facts.key.group]
        pieces = self._host.pieces(copy.target_slots, ends)
        size = _head_of_raw(copy, group)
        if size is not None:
            scratch = self._disk.take(size)
            # one slot may be filled to its last page, so that its bytes need no other way than the device's
            room = self._host.pieces(copy.target_slots, [_whole_pages(ends[0])]) if len(ends) == 1 else pieces
            self._disk.read_into(page, 0, [scratch, *room], copy.source_bytes)
            head = read_head(scratch, group.sections, facts.key, facts.generation)
            if head is not None:
                verify_payload(head, pieces)
                return
        decode_frame(self._disk.read(page, copy.source_bytes), facts.key, facts.generation, pieces)

    # -- by layers ------------------------------------------------------------------------------
    def _first_group(self, promotion: Promotion, described: Described) -> int:
        """Bytes of the head and the first group of layers; 0 where the object can only be loaded whole.

        The head has no read of its own: it would cost as much as the group behind it.
        """
        copy, facts = promotion.copy, promotion.copy.facts
        group, ends = described.layout.groups[facts.key.group], described.cuts[facts.key.group]
        size = _head_of_raw(copy, group)
        if size is None or len(ends) > 1:
            return 0
        self._host.mark(copy.target_slots, filling_word(copy.stamp))
        groups = self._layer_groups(facts.namespace, facts.key.group, group, len(described.layout.layers))
        (room,) = self._host.pieces(copy.target_slots, [_whole_pages(ends[0])])
        scratch = self._disk.take(size)
        first = groups[0]
        needed = size + min(first.end_byte, facts.raw_bytes)
        self._disk.read_into(copy.source_slots[0], 0, [scratch, room[: first.end_byte]], needed)
        head = read_head(scratch, group.sections, facts.key, facts.generation)
        if head is None:
            return 0
        by_layers = _ByLayers(head, section_checks(head, group.sections), room, room[: facts.raw_bytes], groups)
        self._by_layers[promotion.number] = by_layers
        self._promotions.split(promotion, len(groups))
        self._verify(promotion, by_layers, 0)
        return needed

    def _load_group(self, promotion: Promotion, by_layers: _ByLayers, number: int) -> int:
        """CorruptFrame, TierFault."""
        copy, group = promotion.copy, by_layers.groups[number]
        size = copy.source_bytes - copy.facts.raw_bytes
        needed = min(group.end_byte, copy.facts.raw_bytes) - group.start_byte
        room = by_layers.room[group.start_byte : group.end_byte]
        self._disk.read_into(copy.source_slots[0], size + group.start_byte, [room], needed)
        self._verify(promotion, by_layers, number)
        return needed

    def _verify(self, promotion: Promotion, by_layers: _ByLayers, loaded: int) -> None:
        for number in self._promotions.loaded(promotion, loaded):
            group = by_layers.groups[number]
            verify_sections(by_layers.checks, by_layers.payload, group.first, group.end)
            if self._promotions.verified(promotion, number, group.layers):
                self._reports.layered(promotion.copy.flow)

    def _layer_groups(self, namespace: bytes, index: int, group: Group, layers: int) -> tuple[LayerGroup, ...]:
        known = self._groups.get((namespace, index))
        if known is None:
            known = self._groups[namespace, index] = layer_groups(group, layers, GROUP_BYTES)
        return known


def layer_groups(group: Group, layers: int, least_bytes: int) -> tuple[LayerGroup, ...]:
    """Cut an object between layers into parts of `least_bytes` or more, the last one up to twice that."""
    sections = group.sections
    edges = tuple(accumulate((section.nbytes for section in sections), initial=0))
    starts = [index for index in range(1, len(sections)) if sections[index].layer != sections[index - 1].layer]
    cuts = [0]
    for start in starts:
        if edges[start] - edges[cuts[-1]] >= least_bytes and edges[-1] - edges[start] >= least_bytes:
            cuts.append(start)
    ends = [*cuts[1:], len(sections)]
    return tuple(
        LayerGroup(
            first,
            end,
            _whole_pages(edges[first]),
            _whole_pages(edges[end]),
            sections[end].layer if end < len(sections) else layers,
        )
        for first, end in zip(cuts, ends, strict=True)
    )


def _head_of_raw(copy: Copy, group: Group) -> int | None:
    """Bytes before the payload, where this frame can only be a raw one whose payload starts on a page."""
    size = head_bytes(group.sections)
    is_raw = copy.source_bytes == size + copy.facts.raw_bytes
    return size if is_raw and size % PAGE_BYTES == 0 else None


def _whole_pages(nbytes: int) -> int:
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES
