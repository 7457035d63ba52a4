"""Layouts that a simulation may ask for: the presets at any block size, and plain rows.

A daemon refuses a V4 block of 64 tokens, because an HCA entry covers 128. A simulation may ask what it would be worth:
an entry that blocks cut is spread evenly over them, and rows and state have exactly the bytes that they would have.
"""

from __future__ import annotations

import math
from dataclasses import replace

from kvstore.core.errors import InvalidInput
from kvstore.core.layout import Group, GroupKind, Layer, LayerKind, ModelLayout, Section
from kvstore.core.presets import custom, preset, with_changes

PLAIN = "plain"


def sim_layout(text: str, block_tokens: int, resume_alignment: int | None = None) -> ModelLayout:
    """From `v4-flash` or another preset, or `plain:BYTES_PER_TOKEN`: rows without states, to compare with any cache.

    `resume_alignment` defaults to the block. Raises InvalidInput or InvalidLayout in one sentence.

    >>> sim_layout("v4-flash", 512).rows.nbytes, sim_layout("v4-flash", 64).rows.nbytes
    (1799296, 224912)
    >>> layout = sim_layout("plain:2.5", 64)
    >>> layout.rows.nbytes, layout.state
    (160, None)
    """
    if block_tokens < 1:
        raise InvalidInput(f"blocks of {block_tokens} tokens: a block has at least one token")
    alignment = block_tokens if resume_alignment is None else resume_alignment
    name, _, argument = text.strip().partition(":")
    if name.lower() == PLAIN:
        return _plain(text, argument, block_tokens, alignment)
    return _at_block_size(preset(text), block_tokens, alignment)


def _plain(text: str, argument: str, block_tokens: int, alignment: int) -> ModelLayout:
    try:
        nbytes = float(argument) * block_tokens
    except ValueError:
        nbytes = 0.0
    if not 0 < nbytes < math.inf:
        raise InvalidInput(f"layout {text} names no bytes a token: write plain:BYTES_PER_TOKEN, such as plain:3514")
    rows = Section(0, "rows", 1, math.ceil(nbytes))
    return custom(
        f"plain-{argument}",
        "simulated",
        layers=(Layer(LayerKind.FULL),),
        groups=(Group("rows", GroupKind.ROWS, (rows,)),),
        block_tokens=block_tokens,
        resume_alignment=alignment,
    )


def _at_block_size(layout: ModelLayout, block_tokens: int, alignment: int) -> ModelLayout:
    """The layout with other blocks. States are snapshots and stay as they are; rows grow with the block.

    Where a block cuts a layer's entries, the layer's ratio becomes the largest that divides the block, because
    `ModelLayout` asks for one that does: what a prefill costs is told by the preset, not by this layout.
    """
    sections = tuple(_resized(section, layout.block_tokens, block_tokens) for section in layout.rows.sections)
    layers = tuple(
        replace(layer, ratio=math.gcd(layer.ratio, block_tokens)) if layer.ratio else layer for layer in layout.layers
    )
    groups = (replace(layout.rows, sections=sections), *layout.groups[1:])
    return with_changes(layout, block_tokens=block_tokens, resume_alignment=alignment, layers=layers, groups=groups)


def _resized(section: Section, have_tokens: int, want_tokens: int) -> Section:
    """Whole entries where the block has them; else one part of the bytes that fall to the block, rounded up."""
    entries, cut = divmod(section.entries * want_tokens, have_tokens)
    if not cut:
        return replace(section, entries=entries)
    return replace(section, entries=1, data_bytes=-(-section.nbytes * want_tokens // have_tokens), scale_bytes=0)
