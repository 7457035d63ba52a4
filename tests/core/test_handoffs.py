"""One reader, a byte bound and a life of seconds; and the name of an exact sequence is nobody else's."""

from __future__ import annotations

import hashlib
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.errors import InvalidInput
from kvstore.core.handoff import Handoffs, Name, Stage
from kvstore.core.prefix import Extra, handoff_key, hash_blocks

ROOT = bytes(range(32))
ONE, OTHER = Name(b"n" * 32, b"k" * 32), Name(b"m" * 32, b"k" * 32)


def packed(*tokens: int) -> bytes:
    return struct.pack(f"<{len(tokens)}i", *tokens)


def kept(handoffs, name=ONE, room=10, ttl=5.0, now=0.0):
    handoff = handoffs.admit(name, room, ttl, now)
    assert handoff is not None
    handoffs.filled(handoff, now)
    return handoff


def test_only_one_reader_gets_it():
    handoffs = Handoffs(100)
    handoff = kept(handoffs)
    assert handoffs.take(ONE, 1.0) is handoff
    assert handoffs.take(ONE, 1.0) is None


def test_it_cannot_be_taken_before_its_last_byte_or_after_its_life():
    handoffs = Handoffs(100)
    handoff = handoffs.admit(ONE, 10, 5.0, 0.0)
    assert handoffs.take(ONE, 1.0) is None
    handoffs.filled(handoff, 3.0)
    assert handoffs.take(ONE, 8.0) is None, "five seconds are over"
    assert handoffs.expire(7.9) == [] and handoffs.expire(8.0) == [handoff]
    assert handoffs.used_bytes == 0


def test_another_namespace_has_another_handoff_under_the_same_key():
    handoffs = Handoffs(100)
    mine, theirs = kept(handoffs, ONE), kept(handoffs, OTHER)
    assert handoffs.take(OTHER, 1.0) is theirs and handoffs.take(ONE, 1.0) is mine


def test_the_latest_of_a_name_is_the_one_that_is_taken():
    handoffs = Handoffs(20)
    first = kept(handoffs)
    second = handoffs.admit(ONE, 10, 5.0, 1.0)
    assert handoffs.admit(OTHER, 1, 5.0, 1.0) is None, "both need room until the second is whole"
    assert handoffs.filled(second, 1.0) is first
    assert (handoffs.take(ONE, 2.0), handoffs.used_bytes) == (second, 10)


def test_what_is_being_sent_still_takes_room():
    handoffs = Handoffs(10)
    handoff = kept(handoffs)
    handoffs.take(ONE, 1.0)
    assert handoffs.admit(OTHER, 1, 5.0, 1.0) is None
    assert handoffs.expire(100.0) == [], "its reader has it: the room is his until he is done"
    handoffs.end(handoff)
    handoffs.end(handoff)
    assert handoffs.used_bytes == 0 and handoffs.admit(OTHER, 10, 5.0, 1.0) is not None


def test_nothing_is_pushed_out_for_a_new_one():
    handoffs = Handoffs(10)
    handoff = kept(handoffs)
    assert handoffs.admit(OTHER, 1, 5.0, 1.0) is None
    assert handoffs.take(ONE, 1.0) is handoff


@pytest.mark.parametrize("seed", range(20))
def test_random_events_keep_the_bound_and_the_one_reader(seed):
    chance = random.Random(seed)
    handoffs, now = Handoffs(50), 0.0
    names = [Name(bytes([n]) * 32, bytes([k]) * 32) for n in range(2) for k in range(3)]
    filling, taken, waiting = [], [], {}  # waiting: name -> (handoff, when it ends)
    for _ in range(600):
        now += chance.random()
        event, name = chance.randrange(5), chance.choice(names)
        if event == 0:
            room = chance.randint(1, 30)
            used = sum(each.room_bytes for each in [*filling, *taken, *(held for held, _ in waiting.values())])
            handoff = handoffs.admit(name, room, chance.uniform(0.1, 8.0), now)
            assert (handoff is None) == (used + room > 50), f"seed {seed}"
            filling += [handoff] if handoff else []
        elif event == 1 and filling:
            handoff = filling.pop(chance.randrange(len(filling)))
            if chance.random() < 0.3:
                handoffs.end(handoff)
            else:
                handoffs.filled(handoff, now)
                waiting[handoff.name] = (handoff, now + handoff.ttl_seconds)
        elif event == 2:
            expected, ends = waiting.get(name, (None, 0.0))
            if ends <= now:
                expected = None
            assert handoffs.take(name, now) is expected, f"seed {seed}"
            if expected is not None:
                taken.append(expected)
                del waiting[name]
        elif event == 3 and taken:
            handoffs.end(taken.pop(chance.randrange(len(taken))))
        elif event == 4:
            due = {handoff.name for handoff, ends in waiting.values() if ends <= now}
            assert {handoff.name for handoff in handoffs.expire(now)} == due, f"seed {seed}"
            for name in due:
                del waiting[name]
        assert handoffs.count == len(waiting) and 0 <= handoffs.used_bytes <= 50
        assert all(handoff.stage is Stage.KEPT for handoff, _ in waiting.values())


GOLDEN = [
    (bytes(32), b"", 128, (),
     "95f839413558a84a84988b122565aa3a45f58488c89d92270fcce77aa308d7dc"),
    (ROOT, packed(-1, 2**31 - 1, 7), 4, (Extra("adapter", b"lora-a"), Extra("salt", b"")),
     "11ecbcfc03d168b9c6296da9ebea72cfeb7bfce4406db215032ce7166fd551d8"),
 ]  # fmt: skip


@pytest.mark.parametrize(("parent", "rest", "block_tokens", "extras", "expected"), GOLDEN)
def test_keys_are_those_of_every_earlier_build(parent, rest, block_tokens, extras, expected):
    # Worker and taker may run different builds: a change here makes every handoff between them a miss.
    assert handoff_key(parent, rest, block_tokens, extras).hex() == expected


def test_a_key_is_made_as_documented():
    digest = hashlib.sha256(b"kvhand1" + struct.pack("<II", 8, 2) + ROOT + packed(7, 8))
    for body in (b"image", b"\x01\x02"):
        digest.update(struct.pack("<Q", len(body)) + body)
    assert handoff_key(ROOT, packed(7, 8), 8, [Extra("image", b"\x01\x02")]) == digest.digest()


int32s = st.integers(-(2**31), 2**31 - 1)
rests = st.lists(int32s, max_size=7)
extra_lists = st.lists(st.builds(Extra, st.sampled_from(["adapter", "salt", ""]), st.binary(max_size=8)), max_size=2)


@given(rests, extra_lists, rests, extra_lists)
def test_different_sequences_never_share_a_key(tokens, extras, other_tokens, other_extras):
    same = (tokens, extras) == (other_tokens, other_extras)
    left, right = (
        handoff_key(ROOT, packed(*tokens), 8, extras),
        handoff_key(ROOT, packed(*other_tokens), 8, other_extras),
    )
    assert (left == right) == same


def test_a_sequence_of_whole_blocks_and_a_block_never_share_a_name():
    block = hash_blocks(ROOT, packed(1, 2), 2)
    assert handoff_key(block, b"", 2) != block
    assert handoff_key(ROOT, packed(1), 2) != hash_blocks(ROOT, packed(1), 1)
    assert handoff_key(ROOT, b"", 2) != handoff_key(ROOT, b"", 4)


@pytest.mark.parametrize(
    ("parent", "rest", "says"),
    [
        (ROOT[:31], b"", "a parent hash has 32 bytes, not 31"),
        (ROOT, b"123", "3 bytes are not int32 tokens of a part of a block of 2"),
        (ROOT, packed(1, 2), "8 bytes are not int32 tokens of a part of a block of 2"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(parent, rest, says):
    with pytest.raises(InvalidInput, match=says):
        handoff_key(parent, rest, 2)
