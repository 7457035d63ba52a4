"""Layouts of simulations: the presets' bytes at any block size, and plain rows."""

from __future__ import annotations

import pytest

from kvstore.core.errors import InvalidInput, InvalidLayout
from kvstore.core.layout import LayerKind
from kvstore.core.presets import PRESETS, preset
from kvstore.sim.layouts import sim_layout


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("v4")])
def test_a_presets_own_block_gives_the_preset(name):
    assert sim_layout(name, 128) == preset(name)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("block_tokens", [16, 64, 128, 256, 384, 512, 4096])
def test_rows_grow_with_the_block_and_states_do_not(name, block_tokens):
    own, made = preset(name), sim_layout(name, block_tokens)
    assert made.rows.nbytes * own.block_tokens == own.rows.nbytes * block_tokens
    assert made.groups[1:] == own.groups[1:]
    assert (made.block_tokens, made.resume_alignment) == (block_tokens, block_tokens)


@pytest.mark.parametrize("block_tokens", [1, 3, 7, 100, 129])
def test_a_block_that_cuts_bytes_is_rounded_up_by_less_than_one_byte_a_section(block_tokens):
    own, made = preset("v4-pro"), sim_layout("v4-pro", block_tokens)
    exact = own.rows.nbytes * block_tokens / own.block_tokens
    assert exact <= made.rows.nbytes < exact + len(own.rows.sections)


def test_whole_blocks_keep_the_ratios_that_prices_are_made_of():
    assert [layer.ratio for layer in sim_layout("v4-flash", 512).layers] == [
        layer.ratio for layer in preset("v4-flash").layers
    ]
    assert {layer.ratio for layer in sim_layout("v4-flash", 64).layers if layer.kind is LayerKind.HCA} == {64}


def test_a_replay_is_as_long_as_windows_and_layers_make_it():
    assert sim_layout("v4-flash", 64).replay_tokens == preset("v4-flash").replay_tokens == 128 * 43
    assert sim_layout("v4-flash", 512).replay_tokens == 11 * 512  # in whole blocks


def test_plain_rows_have_their_bytes_and_no_state():
    for text, block_tokens, nbytes in (("plain:1", 512, 512), ("plain:131072", 16, 2 << 20), ("plain:0.5", 3, 2)):
        layout = sim_layout(text, block_tokens)
        assert (layout.rows.nbytes, layout.state, layout.replay_tokens) == (nbytes, None, None)
        assert (layout.block_tokens, layout.resume_alignment) == (block_tokens, block_tokens)


def test_an_engine_may_resume_at_fewer_points():
    assert sim_layout("v4-flash", 128, 256).resume_alignment == 256
    assert sim_layout("plain:10", 64, 512).resume_alignment == 512


@pytest.mark.parametrize(
    ("text", "block_tokens", "alignment", "says"),
    [
        ("v4-flahs", 512, None, "did you mean v4-flash"),
        ("plain", 512, None, "write plain:BYTES_PER_TOKEN"),
        ("plain:", 512, None, "write plain:BYTES_PER_TOKEN"),
        ("plain:0", 512, None, "write plain:BYTES_PER_TOKEN"),
        ("plain:-3", 512, None, "write plain:BYTES_PER_TOKEN"),
        ("plain:nan", 512, None, "write plain:BYTES_PER_TOKEN"),
        ("plain:inf", 512, None, "write plain:BYTES_PER_TOKEN"),
        ("plain:many", 512, None, "write plain:BYTES_PER_TOKEN"),
        ("v4-flash", 0, None, "at least one token"),
        ("v4-flash", -128, None, "at least one token"),
    ],
)
def test_a_wrong_layout_is_one_sentence(text, block_tokens, alignment, says):
    with pytest.raises(InvalidInput, match=says):
        sim_layout(text, block_tokens, alignment)


def test_what_no_cache_is_like_is_refused():
    with pytest.raises(InvalidLayout, match="not a multiple of block_tokens"):
        sim_layout("v4-flash", 512, 256)
    with pytest.raises(InvalidLayout, match="has 2147483648 bytes"):
        sim_layout("plain:4194304", 512)
