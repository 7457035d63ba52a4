"""Every field of a layout, changed in turn, opens a namespace of its own, finds nothing, and is named by Hello."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_helpers import Stream, config
from test_fingerprint import changed, flipped, leaves

from kvstore.core import presets
from kvstore.core.errors import InvalidLayout, LayoutMismatch
from kvstore.core.layout import ModelLayout
from kvstore.store.store import Store

LAYOUT = presets.v4_demo()  # it has a compute shape; the shard's fields are None and become numbers
SAME_MODEL = [path for path in leaves(LAYOUT) if path != "model"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    opened = Store.open(config(None))
    Stream(opened, LAYOUT, "a", 3).put(opened, states=[2])
    yield opened
    opened.close()


def test_the_layout_itself_is_found(store: Store) -> None:
    assert Stream(store, LAYOUT, "a", 3).lookup(store).plan.tokens == 384


@pytest.mark.parametrize("path", SAME_MODEL)
def test_a_layout_that_differs_in_one_field_shares_nothing_and_hello_names_it(store: Store, path: str) -> None:
    other = changed(LAYOUT, path, flipped)
    assert isinstance(other, ModelLayout)
    home = Stream(store, LAYOUT, "a", 3)
    with pytest.raises(LayoutMismatch, match=path.replace("[", r"\[").replace("]", r"\]").split(".count")[0]):
        store.hello("test", other, existing_only=True)
    try:
        ModelLayout.__post_init__(other)
    except InvalidLayout:
        return  # such a layout cannot even be built; only its name was of interest
    away = Stream(store, other, "a", 3)
    assert away.namespace != home.namespace and away.root != home.root
    assert away.lookup(store).rows_tokens == 0
    # not even for a worker that knows the other namespace's hashes
    match = store.lookup(away.namespace, home.chain(), 3 * 128 + 1, *_rest())
    assert match.rows_tokens == 0 and match.lease is None


def test_another_model_is_no_near_miss(store: Store) -> None:
    other = changed(LAYOUT, "model", flipped)
    assert isinstance(other, ModelLayout)
    assert store.hello("test", other).differing == ()
    assert Stream(store, other, "a", 3).lookup(store).rows_tokens == 0


def test_names_are_kept_by_the_folder(tmp_path: Path) -> None:
    first = Store.open(config(tmp_path / "d"))
    name = first.hello("test", LAYOUT).id
    first.close()
    second = Store.open(config(tmp_path / "d"))
    assert second.namespace(name) is not None and second.hello("test", LAYOUT).created is False
    second.close()


def _rest():  # type: ignore[no-untyped-def]
    from kvstore.core.match import Hints

    return Hints(), b"w" * 16, False, None
