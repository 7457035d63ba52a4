"""The memo changes how much is hashed, never the hashes; and what is no list of int32 is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.client.arguments import checked_extras, int32_tokens
from kvstore.client.counters import Counters
from kvstore.client.hashing import Hasher
from kvstore.core.errors import InvalidInput
from kvstore.core.prefix import Extra, hash_blocks

ROOT = bytes(range(32))


def plain(tokens, extras=None, root=ROOT, bt=4):
    return hash_blocks(root, np.asarray(tokens, "<i4").tobytes(), bt, extras)


def hasher(memo_bytes=1 << 20):
    return Hasher(4, memo_bytes, Counters())


tokens_lists = st.lists(st.integers(0, 1), max_size=40)
extras_maps = st.dictionaries(st.integers(0, 4), st.just([Extra("salt", b"x")]), max_size=2)


@settings(deadline=None)
@given(st.lists(st.tuples(tokens_lists, extras_maps, st.sampled_from([ROOT, bytes(32)])), max_size=8))
def test_any_history_gives_the_same_hashes(requests):
    memoized = hasher()
    for tokens, extras, root in requests:
        assert memoized.hashed(root, int32_tokens(tokens), extras).hashes == plain(tokens, extras, root)


def test_only_the_new_tail_is_hashed():
    counters = Counters()
    memoized = Hasher(4, 1 << 20, counters)
    memoized.hashed(ROOT, int32_tokens(range(400)))
    longer = [*range(400), *range(40)]
    assert memoized.hashed(ROOT, int32_tokens(longer)).hashes == plain(longer)
    assert counters.snapshot()["hashed_blocks"] == 110
    branch = [*range(200), *range(40)]
    assert memoized.hashed(ROOT, int32_tokens(branch)).hashes == plain(branch)
    assert counters.snapshot()["hashed_blocks"] == 120


def test_the_memo_is_bounded():
    small = hasher(memo_bytes=1000)
    for seed in range(20):
        small.hashed(ROOT, int32_tokens([seed] * 100))
    assert sum(known.nbytes for known in small._memo) <= 1000


def test_chains_name_their_parent():
    hashed = hasher().hashed(ROOT, int32_tokens(range(20)))
    chain = hashed.chain(2, 5)
    assert (chain.first_block, chain.blocks, chain.parent) == (2, 3, hashed.chain(0, 2).hash_at(1))
    assert hashed.chain(0, 1).parent == ROOT


def test_tokens_are_copied_and_read_only():
    given = np.arange(8, dtype=np.int32)
    own = int32_tokens(given)
    given[:] = 0
    assert own[7] == 7 and not own.flags.writeable


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1 << 31], "must fit int32"),
        ([-(1 << 31) - 1], "must fit int32"),
        ([1 << 70], "int32"),
        ([1.5], "dtype float64"),
        ([[1, 2]], "2 dimensions"),
        (["a"], "dtype"),
        ([True], "dtype bool"),
        ([[1], [2, 3]], "whole numbers"),
        (7, "0 dimensions"),
    ],
)
def test_what_is_no_list_of_int32_is_refused(tokens, message):
    with pytest.raises(InvalidInput, match=message):
        int32_tokens(tokens)


@pytest.mark.parametrize("extras", [{-1: []}, {"0": []}, {0: [("a", "text")]}, {0: [b"x"]}])
def test_wrong_extras_are_refused(extras):
    with pytest.raises(InvalidInput, match="extras"):
        checked_extras(extras)
