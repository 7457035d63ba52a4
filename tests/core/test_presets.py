"""Sizes of the presets against published totals; builders and lookups by name."""

from __future__ import annotations

import dataclasses

import pytest

from kvstore.core import presets
from kvstore.core.errors import InvalidInput, InvalidLayout
from kvstore.core.footprint import MILLION_TOKENS, footprint, ratio_to_v32
from kvstore.core.layout import ComputeShape, Group, GroupKind, Layer, LayerKind, ModelLayout, Section
from kvstore.core.presets import INDEXER_BF16, INDEXER_FP8, INDEXER_MXFP4, MAIN_BF16, MAIN_FP8, EntryFormat

GIB = 1 << 30
FLASH_KINDS = [LayerKind.SWA] * 2 + [LayerKind.CSA, LayerKind.HCA] * 20 + [LayerKind.CSA]
PRO_KINDS = [LayerKind.HCA] * 2 + [LayerKind.CSA, LayerKind.HCA] * 29 + [LayerKind.CSA]


def v4_like(kinds: list[LayerKind], main: EntryFormat, indexer: EntryFormat) -> ModelLayout:
    return presets.v4("m", "r", kinds, main=main, indexer=indexer)


@pytest.mark.parametrize(
    ("layout", "block_bytes", "state_bytes"),
    [(presets.v4_flash(), 449_824, 3_644_416), (presets.v4_pro(), 644_024, 5_174_272)],
)
def test_a_block_and_a_state_have_the_published_sizes(layout, block_bytes, state_bytes):
    assert layout.rows.nbytes == block_bytes
    assert layout.state is not None and layout.state.nbytes == state_bytes
    assert round(state_bytes / 1e6, 2) == {449_824: 3.64, 644_024: 5.17}[block_bytes]


def test_the_layers_are_those_of_the_published_configs():
    assert [layer.kind for layer in presets.v4_flash().layers] == FLASH_KINDS
    assert [layer.kind for layer in presets.v4_pro().layers] == PRO_KINDS
    counts = {kind: FLASH_KINDS.count(kind) for kind in LayerKind} | {"pro": PRO_KINDS.count(LayerKind.CSA)}
    assert (counts[LayerKind.SWA], counts[LayerKind.CSA], counts[LayerKind.HCA], counts["pro"]) == (2, 21, 20, 30)


# main, indexer, layers, CSA and HCA B/token a layer, B/token, B a block, GiB per 1M tokens
TABLE = [
    (MAIN_FP8, INDEXER_MXFP4, FLASH_KINDS, 163, 4.5625, 3514.25, 449_824, 3.43),
    (MAIN_FP8, INDEXER_FP8, FLASH_KINDS, 179, 4.5625, 3850.25, 492_832, 3.76),
    (MAIN_BF16, INDEXER_BF16, FLASH_KINDS, 320, 8, 6880, 880_640, 6.72),
    (MAIN_FP8, INDEXER_MXFP4, PRO_KINDS, 163, 4.5625, 5031.4375, 644_024, 4.91),
    (MAIN_FP8, INDEXER_FP8, PRO_KINDS, 179, 4.5625, 5511.4375, 705_464, 5.38),
    (MAIN_BF16, INDEXER_BF16, PRO_KINDS, 320, 8, 9848, 1_260_544, 9.62),
]


@pytest.mark.parametrize(("main", "indexer", "kinds", "csa", "hca", "per_token", "block", "gib"), TABLE)
def test_bytes_per_token_of_every_published_format(main, indexer, kinds, csa, hca, per_token, block, gib):
    size = footprint(v4_like(kinds, main, indexer))
    by_kind = {kind.kind: kind.layer_bytes_per_token for kind in size.kinds}
    assert (by_kind[LayerKind.CSA], by_kind[LayerKind.HCA]) == (csa, hca)
    assert (size.bytes_per_token, size.block_bytes) == (per_token, block)
    # 9848 B/token are 9.617 GiB: published as 9.62
    assert size.bytes_per_token * MILLION_TOKENS / GIB == pytest.approx(gib, abs=0.006)


@pytest.mark.parametrize(
    ("kinds", "main", "window_per_token", "window_bytes", "overlap_bytes"),
    [
        (FLASH_KINDS, MAIN_FP8, 25_112, 3_214_336, 430_080),
        (PRO_KINDS, MAIN_FP8, 35_624, 4_559_872, 614_400),
        (FLASH_KINDS, MAIN_BF16, 44_032, 5_636_096, 430_080),
        (PRO_KINDS, MAIN_BF16, 62_464, 7_995_392, 614_400),
    ],
)
def test_the_parts_of_a_state(kinds, main, window_per_token, window_bytes, overlap_bytes):
    state = v4_like(kinds, main, INDEXER_MXFP4).state
    assert state is not None
    windows = [section for section in state.sections if section.component == "window"]
    assert sum(section.data_bytes + section.scale_bytes for section in windows) == window_per_token
    assert sum(section.nbytes for section in windows) == window_bytes
    assert state.nbytes - window_bytes == overlap_bytes == kinds.count(LayerKind.CSA) * 20_480


def test_rows_beside_v32_are_the_share_that_the_report_draws():
    # figure 1 of the report: 9.5x and 13.7x smaller at a million tokens
    assert round(1 / ratio_to_v32(presets.v4_pro()), 1) == 9.5
    assert round(1 / ratio_to_v32(presets.v4_flash()), 1) == 13.7


def test_replay_takes_one_window_a_layer():
    assert presets.v4_flash().replay_tokens == 5_504
    assert presets.v4_pro().replay_tokens == 7_808
    assert presets.v4_demo().replay_tokens == 384
    assert presets.v32().replay_tokens is None and presets.v32().state is None


def test_mtp_is_an_optional_group_that_changes_neither_rows_nor_state():
    plain, mtp = presets.v4_flash(), presets.v4_flash(mtp=True)
    assert mtp.groups[:2] == plain.groups
    assert [group.optional for group in mtp.groups] == [False, False, True]
    assert mtp.groups[2].nbytes == 128 * 584 and mtp.state_group == 1
    assert mtp.replay_tokens == plain.replay_tokens
    assert footprint(mtp).optional_bytes == 128 * 584
    assert footprint(mtp).cache_bytes(MILLION_TOKENS) == footprint(plain).cache_bytes(MILLION_TOKENS)


def test_the_demo_keeps_the_window_of_transformers():
    demo = presets.v4_demo()
    assert demo.window_rows == 127
    assert {section.entries for section in demo.groups[1].sections if section.component == "window"} == {127}


def test_bytes_by_kind_and_by_component_add_up_to_the_objects():
    for make in presets.PRESETS.values():
        layout, size = make(), footprint(make())
        assert sum(kind.block_bytes for kind in size.kinds) == layout.rows.nbytes
        assert sum(kind.state_bytes for kind in size.kinds) == size.state_bytes
        for group in layout.groups:
            parts = [part.object_bytes for part in size.components if part.group == group.name]
            assert sum(parts) == group.nbytes == group.offsets()[-1]
        assert size.host_block_bytes % 4096 == 0 and 0 <= size.host_block_bytes - size.block_bytes < 4096
        assert size.host_state_bytes >= size.state_bytes


def test_a_flash_state_takes_nine_row_slots():
    size = footprint(presets.v4_flash())
    assert size.host_state_bytes == 9 * size.host_block_bytes


def test_nothing_is_cached_below_one_block():
    size = footprint(presets.v4_flash())
    assert size.cache_bytes(127) == size.host_bytes(127) == 0
    assert size.cache_bytes(128) == size.cache_bytes(255) == 449_824 + 3_644_416


def test_ordinary_attention_has_no_state_and_keeps_keys_and_values():
    layout = presets.full("m", "r", layers=32, kv_heads=8, head_dim=128, block_tokens=64)
    assert layout.rows.nbytes == 32 * 2 * 64 * 8 * 128 * 2 and layout.state_group is None
    assert layout.resume_alignment == 64


@pytest.mark.parametrize("name", ["v4-flash", "v4_flash", " V4-Flash "])
def test_a_preset_is_found_by_its_plain_name(name):
    assert presets.preset(name) == presets.v4_flash()


@pytest.mark.parametrize(
    ("name", "message"),
    [("v4-flahs", "did you mean v4-flash"), ("llama", "choose v4-flash, v4-pro, v32, v4-demo")],
)
def test_an_unknown_preset_names_the_nearest(name, message):
    with pytest.raises(InvalidInput, match=message):
        presets.preset(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_tokens": 64}, "not a multiple of the ratio 128"),
        ({"block_tokens": 0}, "block_tokens=0 is out of range"),
        ({"resume_alignment": 192}, "resume_alignment=192 is not a multiple"),
        ({"model": ""}, "field model has 0 characters"),
        ({"layers": ()}, "0 layers"),
        ({"groups": ()}, "groups\\[0\\] must hold the rows"),
        ({"layers": (Layer(LayerKind.SWA), Layer(LayerKind.FULL, ratio=0))}, "layer 1 is full with ratio 0"),
        ({"layers": (Layer(LayerKind.SWA, window_tokens=-1),) * 43}, "layer 0 is swa with ratio 1 and a window of -1"),
    ],
)
def test_a_layout_that_contradicts_itself_is_refused(changes, message):
    layout = presets.v4_flash()
    if "block_tokens" in changes:
        changes = {"resume_alignment": changes["block_tokens"] or 128, **changes}
    with pytest.raises(InvalidLayout, match=message):
        presets.with_changes(layout, **changes)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ([Section(0, "main", 4, 8), Section(0, "main", 4, 8)], "names a component of a layer twice"),
        ([Section(1, "main", 4, 8), Section(0, "main", 4, 8)], "not in layer order"),
        ([Section(2, "main", 4, 8)], "names layer 2, which does not exist"),
        ([Section(0, "main", 0, 8), Section(1, "main", 4, 8)], "has no bytes"),
        ([Section(0, "main", 1 << 20, 1 << 20)], "an object has 1 to"),
    ],
)
def test_sections_are_checked(sections, message):
    with pytest.raises(InvalidLayout, match=message):
        presets.custom(
            "m", "r", layers=[Layer(LayerKind.FULL)] * 2,
            groups=[Group("rows", GroupKind.ROWS, tuple(sections))], block_tokens=4,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": -1}, "hidden=-1 is out of range"),
        ({"index_flop_weight": 0.0}, "index_flop_weight=0.0 is out of range"),
        ({"core_flop_weight": float("nan")}, "core_flop_weight=nan is out of range"),
        ({"core_flop_weight": float("inf")}, "core_flop_weight=inf is out of range"),
    ],
)
def test_compute_dimensions_are_checked(changes, message):
    compute = presets.v4_flash().compute
    assert isinstance(compute, ComputeShape)
    with pytest.raises(InvalidLayout, match=message):
        dataclasses.replace(compute, **changes)


def test_a_builder_refuses_what_it_does_not_know():
    with pytest.raises(InvalidLayout, match="overlap dtype fp12 is unknown"):
        presets.v4("m", "r", FLASH_KINDS, overlap_dtype="fp12")
    with pytest.raises(InvalidLayout, match="layer 0 is full: a V4 layout has"):
        presets.v4("m", "r", [LayerKind.FULL])
    with pytest.raises(InvalidLayout, match="dtype int3 is unknown"):
        presets.full("m", "r", layers=1, kv_heads=1, head_dim=8, dtype="int3")
