"""Layouts survive JSON, and nothing else is taken for one."""

from __future__ import annotations

import json

import pytest

from kvstore.core import presets
from kvstore.core.errors import InvalidLayout
from kvstore.core.fingerprint import fingerprint
from kvstore.core.layout_json import dump_layout, load_layout

LAYOUTS = [presets.v4_flash(mtp=True), presets.v4_pro(), presets.v32(), presets.v4_tiny(), presets.full_tiny()]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.model)
def test_a_layout_comes_back_equal_with_the_same_fingerprint(layout: object) -> None:
    again = load_layout(dump_layout(layout))  # type: ignore[arg-type]
    assert again == layout and fingerprint(again) == fingerprint(layout)  # type: ignore[arg-type]


def test_whatever_is_missing_added_or_of_another_type_is_refused() -> None:
    good = json.loads(dump_layout(presets.v4_tiny()))
    for change in ({"block_tokens": "128"}, {"block_tokens": True}, {"extra": 1}, {"layers": {}}, {"canonical": 1}):
        with pytest.raises(InvalidLayout):
            load_layout(json.dumps(good | change).encode())
    for blob in (b"", b"[]", b"null", b"\xff", json.dumps({**good, "groups": []}).encode()):
        with pytest.raises(InvalidLayout):
            load_layout(blob)
    del good["shard"]
    with pytest.raises(InvalidLayout):
        load_layout(json.dumps(good).encode())
