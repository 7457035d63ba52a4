"""Why a lookup missed, asked of a real daemon over its socket."""

from __future__ import annotations

import grpc
import pytest
from daemon_peer import LAYOUT, Peer, body

from kvstore.core import presets
from kvstore.core.errors import InvalidInput
from kvstore.core.keys import HASH_BYTES, Chain
from kvstore.rpc.generated import admin_pb2 as admin
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.limits import MAX_BATCH_BLOCKS
from kvstore.rpc.status import error_of

BLOCKS = 4


def explain(peer: Peer, **asked) -> admin.ExplainResponse:
    return peer.call("Explain", admin.ExplainRequest(max_objects=100, **asked))


def look_up(peer: Peer, chain: Chain, session: str = "") -> pb.LookupResponse:
    """With the lease ended, so that nothing is held."""
    match = peer.lookup(chain, hints=pb.Hints(session=session))
    if match.lease:
        peer.call("Release", pb.ReleaseRequest(boot_epoch=peer.hello.boot_epoch, leases=[match.lease]))
    return match


def crowd(peer: Peer) -> None:
    """More rows than the host's 8 MiB have room for."""
    for seed in range(100, 109):
        assert peer.put(peer.chain(256, seed), [body(block) for block in range(256)])


def test_an_evicted_chain_says_so_to_the_worker_and_to_the_operator(real_peer):
    chain = real_peer.chain(BLOCKS, 1)
    real_peer.put(chain, [body(block) for block in range(BLOCKS)])
    assert look_up(real_peer, chain, "before").rows_tokens == BLOCKS * LAYOUT.block_tokens
    crowd(real_peer)
    assert look_up(real_peer, chain, "a7").reason == pb.MISS_REASON_EVICTED
    answer = explain(real_peer, session="a7")
    (lookup,) = answer.lookups
    assert (lookup.session, lookup.model, lookup.rows_tokens) == ("a7", "v4-tiny", 0)
    assert (lookup.reason, lookup.missing_block) == (pb.MISS_REASON_EVICTED, 0)
    assert lookup.ghost.departure == admin.DEPARTURE_EVICTED
    assert lookup.ghost.room_for.tier == pb.TIER_HOST
    assert lookup.ghost.room_for.namespace_id == real_peer.hello.namespace_id
    assert lookup.ghost.seconds_ago >= lookup.seconds_ago >= 0 and lookup.ghost.age_seconds >= 0
    assert answer.policy == "lru"
    (victim,) = answer.victims
    assert victim.model == "v4-tiny" and victim.candidates > 0
    (place,) = victim.object.places
    assert (place.ahead, place.candidates) == (0, victim.candidates)
    counters = real_peer.status().counters
    assert counters["missed_evicted"] == 1
    assert counters["missed_evicted_tokens"] == BLOCKS * LAYOUT.block_tokens


def test_a_diverging_chain_is_placed_beside_the_nearest_stored_one(real_peer):
    long = real_peer.chain(6, 2)
    real_peer.put(long, [body(block) for block in range(6)])
    other = real_peer.chain(2, 3)
    mixed = Chain(0, long.parent, long.hashes[: 4 * HASH_BYTES] + other.hashes)
    assert look_up(real_peer, mixed, "s").reason == pb.MISS_REASON_STATE_MISSING
    (lookup,) = explain(real_peer, session="s").lookups
    assert (lookup.shared_blocks, lookup.continuations, lookup.deepest_block) == (4, 1, 5)
    assert [(found.block, found.group) for found in lookup.objects] == [(3, 0), (2, 0), (1, 0), (0, 0)]
    assert {found.object_class for found in lookup.objects} == {admin.OBJECT_CLASS_SESSION}
    assert not lookup.objects[0].places, "another block stands on it"
    assert dict(lookup.classes) == {"session": 4}


def test_a_chain_is_explained_by_its_hashes_without_touching_it(real_peer):
    chain = real_peer.chain(BLOCKS, 4)
    real_peer.put(chain, [body(block) for block in range(BLOCKS)])
    before = real_peer.status()
    longer = chain.hashes + bytes(range(32))
    (lookup,) = explain(real_peer, hashes=longer).lookups
    assert (lookup.rows_tokens, lookup.prompt_tokens) == (512, 5 * LAYOUT.block_tokens + 1)
    assert lookup.reason == pb.MISS_REASON_STATE_MISSING and lookup.missing_block == 3
    assert not lookup.HasField("ghost")
    after = real_peer.status()
    assert after.leases == before.leases
    assert after.counters.get("lookups", 0) == before.counters.get("lookups", 0)


def test_a_reported_object_is_corrupt_and_a_namespace_beside_it_differs(real, real_peer):
    chain = real_peer.chain(2, 5)
    real_peer.put(chain, [body(0), body(1)])
    report = pb.ReportRequest(namespace_id=real_peer.hello.namespace_id, prefix=chain.hash_at(1), reason="wrong")
    assert real_peer.call("Report", report).dropped
    assert look_up(real_peer, chain, "r").reason == pb.MISS_REASON_STATE_MISSING
    (lookup,) = explain(real_peer, hashes=chain.hashes, prompt_tokens=257).lookups
    assert lookup.rows_tokens == 128
    real_peer.call(
        "Report",
        pb.ReportRequest(namespace_id=real_peer.hello.namespace_id, prefix=chain.hash_at(0), reason="wrong"),
    )
    assert look_up(real_peer, chain, "r").reason == pb.MISS_REASON_CORRUPT
    (lookup,) = explain(real_peer, session="r").lookups
    assert lookup.ghost.departure == admin.DEPARTURE_REPORTED
    real_peer.put(chain, [body(0), body(1)])
    other = Peer(real.address.target)
    other.say_hello(presets.v4_tiny("another"))
    assert look_up(other, other.chain(2, 5), "n").reason == pb.MISS_REASON_NAMESPACE_DIFFERS
    (lookup,) = explain(real_peer, session="n").lookups
    assert (list(lookup.differing_fields), lookup.namesake_rows) == (["revision"], 2)
    other.channel.close()


def test_a_session_in_two_namespaces_is_told_of_both_the_latest_first(real, real_peer):
    other = Peer(real.address.target)
    other.say_hello(presets.v4_tiny("another"))
    spaces = (real_peer.hello.namespace_id, other.hello.namespace_id)
    look_up(real_peer, real_peer.chain(1), "both")
    look_up(other, other.chain(1), "both")
    assert [each.namespace_id for each in explain(real_peer, session="both", max_lookups=9).lookups] == [*spaces[::-1]]
    look_up(real_peer, real_peer.chain(1), "both")
    assert [each.namespace_id for each in explain(real_peer, session="both").lookups] == [spaces[0]]
    other.channel.close()


def test_without_a_name_the_latest_lookups_are_told(real_peer):
    for number in range(5):
        look_up(real_peer, real_peer.chain(1, number), f"s{number}")
    assert [each.session for each in explain(real_peer).lookups] == ["s4"]
    assert [each.session for each in explain(real_peer, max_lookups=3).lookups] == ["s4", "s3", "s2"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"session": "nobody"}, "no lookup of session 'nobody' is remembered"),
        ({"session": "n" * 201}, "at most 200"),
        ({"hashes": bytes(33)}, "send 32 a block"),
        ({"hashes": bytes(32 * (MAX_BATCH_BLOCKS + 1))}, "send 32 a block"),
        ({"hashes": bytes(32), "namespace_id": bytes(32)}, "is not open"),
        ({"hashes": bytes(32), "namespace_id": bytes(3)}, "namespace_id has 3 bytes"),
        ({"hashes": bytes(32), "prompt_tokens": 1 << 31}, "out of range"),
        ({"hashes": bytes(320), "prompt_tokens": 128}, "behind the prompt's 128"),
    ],
)
def test_bad_questions_are_refused_in_words(real_peer, asked, says):
    with pytest.raises(grpc.RpcError) as failed:
        explain(real_peer, **asked)
    error = error_of(failed.value)
    assert isinstance(error, InvalidInput) and says in str(error)


def test_what_lies_in_no_known_chain_needs_a_namespace_where_there_are_two(real_peer):
    assert explain(real_peer, hashes=bytes(32)).lookups[0].reason == pb.MISS_REASON_NEVER_SEEN
    real_peer.say_hello(presets.v4_tiny("another"))
    with pytest.raises(grpc.RpcError) as failed:
        explain(real_peer, hashes=bytes(32))
    assert "none of 2 namespaces knows block 00000000" in str(error_of(failed.value))
    named = explain(real_peer, hashes=bytes(32), namespace_id=real_peer.hello.namespace_id)
    assert named.lookups[0].namespace_id == real_peer.hello.namespace_id


def test_what_is_being_written_is_told_as_such(real_peer):
    chain = real_peer.chain(1, 6)
    real_peer.reserve(chain, [body(0)])
    match = real_peer.lookup(chain, hints=pb.Hints(session="w"))
    assert match.reason == pb.MISS_REASON_UPLOADING
    assert explain(real_peer, session="w").lookups[0].reason == pb.MISS_REASON_UPLOADING
