"""Another policy for a running daemon, over its socket: all is found as before, and eviction follows the new order."""

from __future__ import annotations

import logging
import threading

import grpc
import pytest
from daemon_peer import LAYOUT, Peer, body, until

from kvstore.core.errors import InvalidInput
from kvstore.core.policies import POLICIES
from kvstore.rpc.generated import admin_pb2 as admin
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.status import error_of

BLOCKS = 32
FILLING = 30  # chains that fit the host's 8 MiB beside the first


def look_up(peer: Peer, chain) -> int:
    """Blocks that are found; the lease is ended."""
    match = peer.lookup(chain)
    if match.lease:
        peer.call("Release", pb.ReleaseRequest(boot_epoch=peer.hello.boot_epoch, leases=[match.lease]))
    return match.rows_tokens // LAYOUT.block_tokens


def put(peer: Peer, seed: int):
    chain = peer.chain(BLOCKS, seed)
    assert peer.put(chain, [body(block) for block in range(BLOCKS)])
    return chain


def change(peer: Peer, **wishes) -> admin.SetPolicyResponse:
    return peer.call("SetPolicy", admin.SetPolicyRequest(**wishes))


def in_charge(peer: Peer) -> admin.PolicyInCharge:
    return peer.call("GetPolicy", admin.GetPolicyRequest()).now


def test_a_daemon_says_what_is_in_charge(real_peer):
    now = in_charge(real_peer)
    assert (now.policy, now.keep_seconds, now.placement, now.replay) == ("lru", 0.0, "adaptive", True)
    assert (now.objects, now.left_to_move) == (0, 0)


@pytest.mark.parametrize("name", POLICIES)
def test_everything_is_found_after_a_change(real, real_peer, name):
    chains = [put(real_peer, seed) for seed in range(10)]
    changed = change(real_peer, policy=name)
    assert (changed.before.policy, changed.now.policy) == ("lru", name)
    assert changed.now.objects == 10 * BLOCKS
    until(lambda: in_charge(real_peer).left_to_move == 0)
    assert [look_up(real_peer, chain) for chain in chains] == [BLOCKS] * 10
    real.store.contents()  # every invariant of the planner
    assert real_peer.call("Explain", admin.ExplainRequest()).policy == name


@pytest.mark.parametrize("name", ["lru", "lfu"])
def test_eviction_follows_the_order_of_the_new_policy(real, real_peer, name):
    popular = put(real_peer, 1)
    for _ in range(6):
        assert look_up(real_peer, popular) == BLOCKS
    filling = [put(real_peer, seed) for seed in range(2, 2 + FILLING)]
    assert look_up(real_peer, filling[0]) == BLOCKS
    change(real_peer, policy=name)
    until(lambda: in_charge(real_peer).left_to_move == 0)
    seed = 1000
    while look_up_quietly(real, filling[-1]) or seed < 1010:  # until all that was there, but for what is popular, went
        put(real_peer, seed)
        seed += 1
    # what was used often goes with the rest by age, and stays by frequency
    assert look_up(real_peer, popular) == (BLOCKS if name == "lfu" else 0)
    real.store.contents()


def look_up_quietly(real, chain) -> bool:
    """Whether the chain's first block is there, without a use of it."""
    prefix = chain.hash_at(0)
    return any(key.prefix == prefix for key in real.store.contents())


def test_calls_are_answered_while_policies_change(real, real_peer):
    chains = [put(real_peer, seed) for seed in range(20)]
    trouble: list[BaseException] = []
    is_over = threading.Event()

    def work() -> None:
        try:
            seed = 500
            while not is_over.is_set():
                put(real_peer, seed)
                assert look_up(real_peer, chains[seed % 20]) <= BLOCKS
                seed += 1
        except BaseException as error:
            trouble.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for name in [*POLICIES, *reversed(POLICIES)]:
            assert change(real_peer, policy=name).now.policy == name
            real.store.contents()
    finally:
        is_over.set()
        worker.join(30)
    assert not trouble and not worker.is_alive()
    until(lambda: in_charge(real_peer).left_to_move == 0)
    real.store.contents()


def test_what_is_left_out_stays(real_peer):
    change(real_peer, keep_seconds=30.0)
    changed = change(real_peer, placement="interval:1024", replay=False)
    assert (changed.before.placement, changed.before.replay) == ("adaptive", True)
    now = in_charge(real_peer)
    assert (now.policy, now.keep_seconds, now.placement, now.replay) == ("lru", 30.0, "interval:1024", False)
    assert change(real_peer, keep_seconds=0.0).now.keep_seconds == 0.0


def test_keep_seconds_refuses_what_is_new_from_then_on(real_peer):
    for seed in range(100, 180):  # more than the host has room for
        put(real_peer, seed)
    change(real_peer, keep_seconds=3600.0)
    refused = real_peer.chain(BLOCKS, 99)
    real_peer.put(refused, [body(block) for block in range(BLOCKS)])
    assert look_up(real_peer, refused) < BLOCKS
    change(real_peer, keep_seconds=0.0)
    assert look_up(real_peer, put(real_peer, 98)) == BLOCKS


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"policy": "s3-fifo"}, "did you mean s3fifo"),
        ({"policy": ""}, "there are lru"),
        ({"policy": "arc", "keep_seconds": -1.0}, "from 0 to 86400"),
        ({"policy": "arc", "keep_seconds": float("nan")}, "from 0 to 86400"),
        ({"policy": "arc", "placement": "interval:x"}, "interval:N with N tokens"),
    ],
)
def test_what_cannot_be_is_refused_in_words_and_changes_nothing(real_peer, wishes, says):
    with pytest.raises(grpc.RpcError) as refused:
        change(real_peer, **wishes)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = error_of(refused.value)
    assert isinstance(error, InvalidInput) and says in str(error)
    now = in_charge(real_peer)
    assert (now.policy, now.keep_seconds, now.placement) == ("lru", 0.0, "adaptive")


def test_the_log_says_what_changed_and_when_it_is_done(real_peer, caplog):
    put(real_peer, 1)
    with caplog.at_level(logging.INFO, logger="kvstore.store"):
        change(real_peer, policy="arc", keep_seconds=60.0)
        until(lambda: in_charge(real_peer).left_to_move == 0)
    said = [record.getMessage() for record in caplog.records]
    assert f"policy arc is in charge, it was lru: ranking {BLOCKS} objects" in said
    assert "keep_seconds is 60, it was 0" in said
    assert f"policy arc ranks all {BLOCKS} objects" in said
