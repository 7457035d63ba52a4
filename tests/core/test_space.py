"""Space: slots, size classes, cut points."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvstore.core import presets
from kvstore.core.keys import BlockKey
from kvstore.core.layout import Group, GroupKind, Section
from kvstore.core.space import Space, class_pages, cut_points, region_pages, slot_pages

KEY = BlockKey(b"k" * 32, 0)


def test_a_flash_state_takes_nine_row_slots() -> None:
    layout = presets.v4_flash()
    pages = slot_pages(layout.rows.nbytes, 1 << 20)
    assert pages * 4096 == 450_560
    assert layout.state is not None and len(cut_points(layout.state, pages * 4096)) == 9
    assert len(cut_points(layout.rows, pages * 4096)) == 1


@given(st.integers(1, 1 << 31))
def test_size_classes_waste_at_most_an_eighth_and_a_page(nbytes: int) -> None:
    pages = class_pages(nbytes)
    needed = -(-nbytes // 4096)
    assert needed <= pages <= max(needed * 1.125, needed)
    assert class_pages(pages * 4096) == pages  # a class holds itself


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5)), min_size=1, max_size=20),
    st.integers(64, 1024),
)
def test_no_section_straddles_slots_unless_it_is_larger_than_one(
    shapes: list[tuple[int, int, int]], slot_bytes: int
) -> None:
    sections = tuple(Section(index, "c", *shape) for index, shape in enumerate(shapes))
    group = Group("rows", GroupKind.ROWS, sections)
    ends = cut_points(group, slot_bytes)
    starts = (0, *ends[:-1])
    assert ends[-1] == group.nbytes
    assert all(0 < end - start <= slot_bytes for start, end in zip(starts, ends, strict=True))
    offsets = group.offsets()
    for section, offset in zip(sections, offsets, strict=False):
        inside = [end for end in ends if offset < end < offset + section.nbytes]
        if section.nbytes <= slot_bytes:
            assert not inside
        for end in inside:
            data_end = section.entries * section.data_bytes
            in_data = end - offset <= data_end
            row, at = (section.data_bytes, end - offset) if in_data else (section.scale_bytes, end - offset - data_end)
            assert at % row == 0, "a split inside a row"


def test_a_region_is_at_most_a_64th_of_its_tier() -> None:
    for capacity in (1 << 20, 64 << 20, 4 << 30, 1 << 40):
        assert region_pages(capacity) * 4096 * 64 <= capacity


def test_an_emptied_region_may_change_owner_and_cut() -> None:
    space = Space(region_pages=10)
    space.add_regions(1)
    slots = space.allocate("a", 3, 3, KEY, 0.0)
    assert space.room("b", 5) == 0 and space.used_pages == 9
    space.free(slots)
    assert space.room("b", 5) == 2
    assert space.allocate("b", 5, 2, KEY, 0.0) in ((0, 5), (5, 0))
    space.check()


def test_a_retired_region_gives_nothing_out_and_frees_what_ends() -> None:
    space = Space(region_pages=4)
    space.add_regions(2)
    held = space.allocate("a", 2, 2, KEY, 0.0)
    space.retire(held[0] // 4)
    assert space.room("a", 2) == 2 and space.total_pages == 4
    space.check()
    space.free(held)
    space.check()
    assert space.room("a", 2) == 2 and space.used_pages == 0


def test_recovery_takes_only_slots_that_exist_and_are_free() -> None:
    space = Space(region_pages=9, header_pages=1)
    space.add_regions(2)
    assert space.take(4, 4, 1, KEY, 0.0) and space.take(4, 4, 5, KEY, 0.0)
    assert not space.take(4, 4, 5, KEY, 0.0), "taken"
    assert not space.take(4, 4, 9, KEY, 0.0), "the header page of the next region"
    assert not space.take(4, 4, 12, KEY, 0.0), "between two slots"
    assert not space.take(4, 4, 1000, KEY, 0.0), "beyond the tier"
    assert not space.take(2, 2, 1, KEY, 0.0), "cut for another class"
    space.check()
