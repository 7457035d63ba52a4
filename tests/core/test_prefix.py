"""Chained prefix hashes: golden vectors, injectivity over tokens, extras and parents, and bad input."""

from __future__ import annotations

import array
import hashlib
import hmac
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.errors import InvalidInput
from kvstore.core.prefix import Extra, hash_blocks, namespace_id, namespace_root

ROOT = bytes(range(32))


def packed(*tokens: int) -> bytes:
    return struct.pack(f"<{len(tokens)}i", *tokens)


GOLDEN = [
    # parent, tokens, block_tokens, extras, hashes
    (
        bytes(32), packed(*range(8)), 4, None,
        "cb20edaa51f42291bd0be39b92b64f1c81845c8382b68aa11ccaaf042affd79cbe5de4a58b5e66f7fe8303ec8632b10e293c19e8054b22f45a17c47199b66121",
    ),
    (
        ROOT, packed(-1, 0, 2**31 - 1, -(2**31)), 4, {0: [Extra("adapter", b"lora-a"), Extra("salt", b"")]},
        "2b0dce3564ccad193478109e691a2f8b46d035a3678783cc9f7117155bd06222",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("parent", "tokens", "block_tokens", "extras", "expected"), GOLDEN)
def test_hashes_are_those_of_every_earlier_build(parent, tokens, block_tokens, extras, expected):
    # A change here makes every stored block unreachable.
    assert hash_blocks(parent, tokens, block_tokens, extras).hex() == expected


def test_a_hash_is_made_as_documented():
    digest = hashlib.sha256(b"kvblk1" + struct.pack("<I", 2) + ROOT + packed(7, 8))
    for body in (b"image", b"\x01\x02"):
        digest.update(struct.pack("<Q", len(body)) + body)
    assert hash_blocks(ROOT, packed(7, 8), 2, {0: [Extra("image", b"\x01\x02")]}) == digest.digest()


def test_roots_and_namespaces_have_golden_vectors():
    assert (
        namespace_root(b"secret", "tenant", b"f" * 32).hex()
        == "eca1edb9484b8bed37ede0cd6cd740a7c5e947a424af24ad5cdd3b6a7dd0beac"
    )
    assert namespace_id("tenant", b"f" * 32).hex() == "7c25cc3f81a4f92028e14782a04a4de0d5835565fb63a2b745d8f8dfaf052f5e"


def test_a_root_needs_the_secret_and_a_namespace_reveals_nothing_of_it():
    def framed(body: bytes) -> bytes:
        return struct.pack("<Q", len(body)) + body

    body = framed(b"kvstore root 1") + framed(b"tenant") + framed(b"f" * 32)
    assert namespace_root(b"secret", "tenant", b"f" * 32) == hmac.digest(b"secret", body, "sha256")
    assert namespace_root(b"other", "tenant", b"f" * 32) != namespace_root(b"secret", "tenant", b"f" * 32)


@given(st.tuples(st.text(max_size=3), st.binary(max_size=3)), st.tuples(st.text(max_size=3), st.binary(max_size=3)))
def test_two_namespaces_never_share_a_root(left, right):
    same = left == right
    assert (namespace_root(b"k", *left) == namespace_root(b"k", *right)) == same
    assert (namespace_id(*left) == namespace_id(*right)) == same


tags = st.sampled_from(["adapter", "salt", "image", "a", "ad", "", "/", "-SEP-", "salt/X"])
values = st.one_of(st.binary(max_size=4), st.sampled_from([b"X", b"/", b"-SEP-", b"adapter", b"X/salt"]))
extra_lists = st.lists(st.builds(Extra, tags, values), max_size=3)


@given(extra_lists, extra_lists)
def test_different_extras_never_share_a_hash(left, right):
    hashes = [hash_blocks(ROOT, packed(1, 2), 2, {0: extras}) for extras in (left, right)]
    assert (hashes[0] == hashes[1]) == (left == right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ([Extra("adapter", b"X")], [Extra("salt", b"X")]),
        ([Extra("adapter", b"a/b")], [Extra("adapter", b"a"), Extra("adapter", b"b")]),
        ([Extra("adapter", b"a/b")], [Extra("adapter", b"a-SEP-b")]),
        ([Extra("adapter", b"")], []),
        ([Extra("ad", b"apter")], [Extra("adapter", b"")]),
        ([Extra("salt", b"1"), Extra("image", b"2")], [Extra("image", b"2"), Extra("salt", b"1")]),
    ],
)
def test_extras_that_look_alike_differ(left, right):
    assert hash_blocks(ROOT, packed(1), 1, {0: left}) != hash_blocks(ROOT, packed(1), 1, {0: right})


def test_an_extra_cannot_be_mistaken_for_tokens():
    # the bytes of a framed extra, given as tokens of a longer block
    framed = struct.pack("<Q", 4) + b"salt" + struct.pack("<Q", 4) + b"1234"
    as_extra = hash_blocks(ROOT, packed(5), 1, {0: [Extra("salt", b"1234")]})
    as_tokens = hash_blocks(ROOT, packed(5) + framed, 1 + len(framed) // 4)
    assert as_extra != as_tokens


def test_an_extra_is_inherited_by_every_later_block_and_by_no_earlier_one():
    plain = hash_blocks(ROOT, packed(*range(6)), 2)
    with_image = hash_blocks(ROOT, packed(*range(6)), 2, {1: [Extra("image", b"hash")]})
    assert [plain[i : i + 32] == with_image[i : i + 32] for i in (0, 32, 64)] == [True, False, False]


int32s = st.integers(-(2**31), 2**31 - 1)


@given(st.lists(int32s, min_size=1, max_size=24), st.integers(1, 4), st.data())
def test_continuing_from_a_parent_equals_hashing_the_whole(tokens, block_tokens, data):
    whole = hash_blocks(ROOT, packed(*tokens), block_tokens)
    blocks = len(tokens) // block_tokens
    assert len(whole) == 32 * blocks
    cut = data.draw(st.integers(0, blocks))
    head = hash_blocks(ROOT, packed(*tokens[: cut * block_tokens]), block_tokens)
    parent = head[-32:] if cut else ROOT
    assert head + hash_blocks(parent, packed(*tokens[cut * block_tokens :]), block_tokens) == whole


@given(st.lists(int32s, min_size=4, max_size=4), st.lists(int32s, min_size=4, max_size=4))
def test_different_tokens_never_share_a_hash(left, right):
    first, second = (hash_blocks(ROOT, packed(*tokens), 2) for tokens in (left, right))
    assert (first[:32] == second[:32]) == (left[:2] == right[:2])
    assert (first[32:] == second[32:]) == (left == right)


def test_the_block_size_and_the_parent_are_part_of_a_hash():
    assert hash_blocks(ROOT, packed(1, 2), 2) != hash_blocks(bytes(32), packed(1, 2), 2)
    assert hash_blocks(ROOT, packed(1), 1) != hash_blocks(ROOT, packed(1, 0), 2)


def test_a_part_of_a_block_is_left_out():
    assert hash_blocks(ROOT, packed(1, 2, 3), 2) == hash_blocks(ROOT, packed(1, 2), 2)
    assert hash_blocks(ROOT, b"", 2) == hash_blocks(ROOT, packed(1), 2) == b""


def test_any_buffer_of_tokens_gives_the_same_hashes():
    tokens = array.array("i", range(130))
    assert hash_blocks(ROOT, memoryview(tokens), 2) == hash_blocks(ROOT, packed(*range(130)), 2)


@pytest.mark.parametrize(
    ("parent", "tokens", "block_tokens", "extras", "message"),
    [
        (ROOT[:31], b"", 2, None, "a parent hash has 32 bytes, not 31"),
        (ROOT, b"12345", 2, None, "5 bytes are not whole int32 tokens: pass little-endian int32"),
        (ROOT, packed(1), 0, None, "block_tokens=0 is out of range"),
        (ROOT, packed(1), 1, {-1: [Extra("salt", b"")]}, "extras name block -1: count from 0"),
    ],
)
def test_bad_input_is_one_plain_sentence(parent, tokens, block_tokens, extras, message):
    with pytest.raises(InvalidInput, match=message):
        hash_blocks(parent, tokens, block_tokens, extras)
