"""Layouts and arrays that several benches share."""

from __future__ import annotations

import mmap
import os
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from kvstore.core.layout import Group, GroupKind, Layer, LayerKind, ModelLayout, Section
from kvstore.core.presets import custom, v4_flash, v4_pro

BLOCK_TOKENS = 128
SCALE = 64  # of scaled_flash: rows of 7 KB a block instead of 450 KB

Tokens = NDArray[np.int32]
Rows = dict[str, NDArray[np.uint8]]


def even_layout(layers: int, section_bytes: int, name: str = "bench") -> ModelLayout:
    """Rows of `layers` equal sections and no state, so that every boundary is a resume point."""
    sections = tuple(Section(layer, "full.rows", 1, section_bytes, 0, "bytes") for layer in range(layers))
    return rows_layout(f"{name}-{layers}-by-{section_bytes}", layers, sections)


def rows_layout(model: str, layers: int, sections: tuple[Section, ...]) -> ModelLayout:
    """Rows with these sections and no state."""
    kinds = (Layer(LayerKind.FULL),) * layers
    groups = (Group("rows", GroupKind.ROWS, sections),)
    return custom(model, "bench", layers=kinds, groups=groups, block_tokens=BLOCK_TOKENS)


def flash_rows() -> ModelLayout:
    """The rows of V4-Flash, 450 KB a block, without its states."""
    flash = v4_flash("bench")
    return rows_layout("bench-flash-rows", len(flash.layers), flash.rows.sections)


def pro_rows() -> ModelLayout:
    """The rows of V4-Pro, 644 KB a block, without its states."""
    pro = v4_pro("bench")
    return rows_layout("bench-644-kb", len(pro.layers), pro.rows.sections)


def aligned_bytes(nbytes: int) -> NDArray[np.uint8]:
    """A buffer as a worker should have it: it starts at a page, and is touched, so that nothing of it is made later."""
    memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    whole[:] = 0
    return whole[:nbytes]


def shared_bytes(nbytes: int) -> NDArray[np.uint8]:
    """Memory as the daemon's is: a memfd, mapped shared, touched; in huge pages only where the machine grants them."""
    fd = os.memfd_create("bench")
    try:
        os.posix_fallocate(fd, 0, max(nbytes, 1))
        whole = np.frombuffer(mmap.mmap(fd, max(nbytes, 1)), np.uint8)
    finally:
        os.close(fd)
    whole[:] = 0
    return whole[:nbytes]


def scaled_flash() -> ModelLayout:
    """V4-Flash with all its sections, each 1/64 of its size: a prompt of 100,000 tokens has 5.5 MB, not 352."""
    flash = v4_flash("bench")
    groups = tuple(
        Group(group.name, group.kind, tuple(_scaled(section) for section in group.sections), group.optional)
        for group in flash.groups
    )
    return custom("bench-flash-64th", "bench", layers=flash.layers, groups=groups, block_tokens=BLOCK_TOKENS)


def _scaled(section: Section) -> Section:
    return Section(section.layer, section.component, 1, max(1, section.nbytes // SCALE), 0, "bytes")


def sections_by_component(group: Group) -> dict[str, list[Section]]:
    parts: dict[str, list[Section]] = defaultdict(list)
    for section in group.sections:
        parts[section.component].append(section)
    return parts


def arrays_of(group: Group, shape: tuple[int, ...], rng: np.random.Generator) -> Rows:
    """Random arrays as `Client.put` takes them: (*shape, layers having it, section bytes) a component."""
    return {
        name: rng.integers(0, 256, (*shape, len(parts), parts[0].nbytes), dtype=np.uint8)
        for name, parts in sections_by_component(group).items()
    }


def random_tokens(count: int, seed: int) -> Tokens:
    return np.random.default_rng(seed).integers(0, 1 << 31, count, dtype=np.int32)
