"""A layout that differs in any one field has another fingerprint, and the difference has a name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core import presets
from kvstore.core.fingerprint import differing_fields, encode, fingerprint
from kvstore.core.layout import ModelLayout, Shard

GOLDEN = json.loads((Path(__file__).parent / "golden_fingerprints.json").read_text())
# every optional thing is there: shard, compute, an optional group
RICH = replace(presets.v4_flash(mtp=True), shard=Shard(1, 2, 3, 4))


def leaves(value: object, path: str = "") -> Iterator[str]:
    """Path of every leaf of a tree of dataclasses and tuples."""
    if is_dataclass(value):
        for field in fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}" if path else field.name)
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    else:
        yield path


def tuples(value: object, path: str = "") -> Iterator[str]:
    """Path of every tuple in the tree."""
    if is_dataclass(value):
        for field in fields(value):
            yield from tuples(getattr(value, field.name), f"{path}.{field.name}" if path else field.name)
    elif isinstance(value, tuple):
        yield path
        for index, item in enumerate(value):
            yield from tuples(item, f"{path}[{index}]")


def changed(value: object, target: str, change: object, path: str = "") -> object:
    """The same tree with `change` applied at `target`; nothing is checked, so that every field can be flipped alone."""
    if path == target:
        return change(value)  # type: ignore[operator]
    if is_dataclass(value):
        copy = object.__new__(type(value))
        for field in fields(value):
            inner = f"{path}.{field.name}" if path else field.name
            object.__setattr__(copy, field.name, changed(getattr(value, field.name), target, change, inner))
        return copy
    if isinstance(value, tuple):
        return tuple(changed(item, target, change, f"{path}[{index}]") for index, item in enumerate(value))
    return value


def flipped(value: object) -> object:
    match value:
        case bool():
            return not value
        case Enum():
            members = list(type(value))
            return members[(members.index(value) + 1) % len(members)]
        case int():
            return value + 1
        case float():
            return value + 0.25
        case str():
            return value + "x"
        case None:
            return 7
    raise AssertionError(f"no flip for {value!r}: teach this test the new kind of field")


# all 43 layers and 150 sections have the same fields: the first, one in the middle and the last stand for them
ALL_LEAVES = list(leaves(RICH))
LEAVES = [
    path
    for path in ALL_LEAVES
    if not path.startswith(("layers[", "groups["))
    or path.startswith(("layers[0]", "layers[2]", "layers[43]"))
    or "sections" not in path
    or any(f"sections[{index}]." in path for index in (0, 3, 40))
]


def test_the_walk_reaches_every_field():
    named = {path.split(".")[0].split("[")[0] for path in LEAVES}
    assert named == {field.name for field in fields(ModelLayout)}
    assert {path.rsplit(".")[-1] for path in LEAVES} == {path.rsplit(".")[-1] for path in ALL_LEAVES}


@pytest.mark.parametrize("path", LEAVES)
def test_any_one_field_changes_the_fingerprint_and_is_named(path):
    other = changed(RICH, path, flipped)
    assert isinstance(other, ModelLayout)
    assert fingerprint(other) != fingerprint(RICH)
    assert differing_fields(RICH, other) == differing_fields(other, RICH) == (path,)


@pytest.mark.parametrize("path", list(tuples(RICH)))
def test_one_item_less_changes_the_fingerprint_and_is_named(path):
    other = changed(RICH, path, lambda items: items[:-1])
    assert isinstance(other, ModelLayout)
    assert fingerprint(other) != fingerprint(RICH)
    assert differing_fields(RICH, other) == (f"{path}.count",)


def test_a_missing_part_is_named_once():
    other = replace(RICH, compute=None)
    assert differing_fields(RICH, other) == differing_fields(other, RICH) == ("compute",)
    assert fingerprint(RICH) != fingerprint(other)


def test_equal_layouts_have_equal_fingerprints_and_no_difference():
    again = replace(presets.v4_flash(mtp=True), shard=Shard(1, 2, 3, 4))
    assert again is not RICH and fingerprint(again) == fingerprint(RICH) and differing_fields(again, RICH) == ()
    compute = replace(RICH.compute, core_flop_weight=2)  # an int where a float is meant
    assert fingerprint(replace(RICH, compute=compute)) == fingerprint(RICH)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_fingerprints_are_those_of_every_earlier_build(name):
    # A change here orphans every cache on disk: raise FORMAT_VERSION and say so, or undo it.
    assert fingerprint(getattr(presets, name)()).hex() == GOLDEN[name]


def test_every_preset_has_a_golden_fingerprint():
    assert {name.replace("-", "_") for name in presets.PRESETS} <= set(GOLDEN)


class Colour(Enum):
    RED = "red"


trees = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=4),
        st.binary(max_size=4), st.just(Colour.RED),
    ),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)  # fmt: skip


def decoded(data: bytes) -> tuple[object, bytes]:
    """(value, rest) of one encoded value: that it can be read back is what makes the encoding injective."""
    tag, length = data[:1], int.from_bytes(data[1:9], "little")
    body, rest = data[9 : 9 + length], data[9 + length :]
    if tag == b"T":
        items = []
        while body:
            item, body = decoded(body)
            items.append(item)
        return tuple(items), rest
    readers = {
        b"N": lambda raw: None,
        b"B": lambda raw: raw == b"\1",
        b"I": lambda raw: int(raw.decode()),
        b"F": lambda raw: float.fromhex(raw.decode()),
        b"S": lambda raw: raw.decode(),
        b"Y": lambda raw: raw,
        b"E": lambda raw: Colour(raw.decode()),
    }
    return readers[tag](body), rest


@given(trees)
def test_the_encoding_can_be_read_back(tree):
    value, rest = decoded(encode(tree))
    assert rest == b"" and repr(value) == repr(tree)  # repr tells 1 from True from 1.0, and 0.0 from -0.0


@given(trees, trees)
def test_two_values_never_share_an_encoding(left, right):
    assert (encode(left) == encode(right)) == (repr(left) == repr(right))


def test_a_layout_holds_only_plain_values():
    with pytest.raises(TypeError, match="a layout holds no list"):
        encode([1])
