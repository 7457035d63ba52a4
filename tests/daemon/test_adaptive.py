"""A running daemon whose ghosts show what other policies would find, and that changes over by itself where it may."""

from __future__ import annotations

import pytest
from daemon_peer import LAYOUT, Peer, body, until

from kvstore.core.shadows import VARIANTS
from kvstore.rpc.generated import admin_pb2 as admin
from kvstore.rpc.generated import kvstore_pb2 as pb

BLOCKS = 128
CHAINS = 12  # more than the 8 MiB of the host have room for: asked for in turn, LRU finds none of them again
ROUNDS = 14


def in_charge(peer: Peer) -> admin.PolicyInCharge:
    return peer.call("GetPolicy", admin.GetPolicyRequest()).now


def change(peer: Peer, **wishes) -> admin.PolicyInCharge:
    return peer.call("SetPolicy", admin.SetPolicyRequest(**wishes)).now


def ask_and_put(peer: Peer, seed: int) -> int:
    """Tokens that were found; what was not is put, as a worker does."""
    chain = peer.chain(BLOCKS, seed)
    match = peer.lookup(chain)
    if match.lease:
        peer.call("Release", pb.ReleaseRequest(boot_epoch=peer.hello.boot_epoch, leases=[match.lease]))
    if match.rows_tokens < BLOCKS * LAYOUT.block_tokens:
        peer.put(chain, [body(block) for block in range(BLOCKS)])
    return match.rows_tokens


def test_ghosts_show_what_others_would_resume(real_peer):
    assert in_charge(real_peer).is_adaptive and not in_charge(real_peer).scores
    for _ in range(3):
        for seed in range(CHAINS):
            ask_and_put(real_peer, seed)
    until(lambda: in_charge(real_peer).followed == 3 * CHAINS, 60.0)
    now = in_charge(real_peer)
    assert {(score.policy, score.keep_seconds) for score in now.scores} == set(VARIANTS)
    assert [score.policy for score in now.scores if score.is_in_charge] == ["lru"]
    assert now.followed > 0 and 0 < now.sample_rate <= 1
    shares = [score.resumed_share for score in now.scores]
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[-1]


def test_the_store_chooses_where_it_may(real_peer):
    assert change(real_peer, policy="adaptive").is_adaptive
    for _ in range(ROUNDS):
        for seed in range(CHAINS):
            ask_and_put(real_peer, seed)
    until(lambda: in_charge(real_peer).last_change, 60.0)
    now = in_charge(real_peer)
    assert now.keep_seconds > 0, "what refuses the new finds some of them each round"
    assert "points more than lru" in now.last_change
    assert sum(ask_and_put(real_peer, seed) for seed in range(CHAINS)) > 0
    now = change(real_peer, policy="gdsf")
    assert (now.policy, now.is_adaptive) == ("gdsf", False), "an operator's choice stays"
    ask_and_put(real_peer, 0)
    until(lambda: "gdsf" in [score.policy for score in in_charge(real_peer).scores if score.is_in_charge], 60.0)


@pytest.mark.parametrize("keep_seconds", [30.0, 45.0])
def test_admission_that_an_operator_fixes_stays(real_peer, keep_seconds):
    assert change(real_peer, policy="adaptive").is_adaptive
    now = change(real_peer, keep_seconds=keep_seconds)
    assert (now.keep_seconds, now.is_adaptive) == (keep_seconds, False)
