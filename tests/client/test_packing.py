"""Packing and unpacking are inverse for any layout, and put each section where the layout says."""

from __future__ import annotations

import numpy as np
import pytest
from client_tools import arrays_of
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.client.packing import Packing
from kvstore.core import presets
from kvstore.core.errors import InvalidInput
from kvstore.core.layout import Group, GroupKind, Section


@st.composite
def groups(draw):
    """Layers that have any subset of three components, each component of one section size."""
    sizes = {name: draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(0, 2))) for name in "abc"}
    layers = draw(st.lists(st.lists(st.sampled_from("abc"), unique=True), min_size=1, max_size=9))
    sections = [Section(index, name, *sizes[name]) for index, names in enumerate(layers) for name in names]
    return Group("rows", GroupKind.ROWS, tuple(sections or [Section(0, "a", *sizes["a"])]))


@settings(max_examples=150, deadline=None)
@given(groups(), st.integers(0, 4), st.integers(0, 2**32))
def test_packing_round_trip(group, blocks, seed):
    packing = Packing(group)
    arrays = arrays_of(group, np.random.default_rng(seed), blocks)
    packing.check(arrays, blocks, "rows")
    objects = np.zeros((blocks, group.nbytes), np.uint8)
    packing.pack(arrays, objects)
    into = {name: np.zeros_like(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        np.testing.assert_array_equal(packing.unpack(name, objects), array)
        packing.unpack_into(name, objects, into[name])
        np.testing.assert_array_equal(into[name], array)
    for block in range(blocks):  # byte by byte against the layout's own offsets
        expected, taken = b"", dict.fromkeys(arrays, 0)
        for section in group.sections:
            expected += arrays[section.component][block, taken[section.component]].tobytes()
            taken[section.component] += 1
        assert objects[block].tobytes() == expected


def test_rows_of_v4_are_views_and_few_copies():
    packing = Packing(presets.v4_flash().rows)
    assert [len(component.runs) for component in packing.components.values()] == [1, 1, 1]
    objects = np.zeros((2, packing.object_bytes), np.uint8)
    assert all(np.shares_memory(packing.unpack(name, objects), objects) for name in packing.components)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows | {"csa.main": rows["csa.main"].astype(np.int8)}, "'csa.main' of rows has dtype int8"),
        (
            lambda rows: rows | {"csa.main": rows["csa.main"][:, :, 1:]},
            r"has shape \(2, 1, 447\), expected \(2, 1, 448\)",
        ),
        (lambda rows: rows | {"hca.main": rows["hca.main"][:1]}, r"'hca.main' of rows has shape \(1, 1, 14\)"),
        (lambda rows: rows | {"nonsense": rows["csa.main"]}, "no component 'nonsense'"),
        (lambda rows: {"csa.main": rows["csa.main"]}, "lack component 'csa.indexer'"),
        (lambda rows: rows | {"hca.main": [1, 2]}, "'hca.main' of rows is a list"),
    ],
)
def test_wrong_arrays_are_named(spoil, message):
    layout = presets.v4_tiny()
    rows = arrays_of(layout.rows, np.random.default_rng(0), 2)
    with pytest.raises(InvalidInput, match=message):
        Packing(layout.rows).check(spoil(rows), 2, "rows")


def test_a_component_of_two_sizes_is_refused():
    group = Group("rows", GroupKind.ROWS, (Section(0, "a", 1, 4), Section(1, "a", 1, 8)))
    with pytest.raises(InvalidInput, match="'a'"):
        Packing(group)
