"""`kvstore explain` as an operator sees it: against a real daemon, and each reason in words."""

from __future__ import annotations

import json
import re

import pytest
from cli_runner import run
from daemon_peer import LAYOUT, Peer, body, config_at

from kvstore.cli.explain import read_hashes
from kvstore.cli.explain_words import told
from kvstore.core.errors import InvalidInput
from kvstore.core.ghosts import Departure
from kvstore.core.match import MissReason
from kvstore.daemon.opening import open_daemon
from kvstore.rpc.enums import MISS_REASON
from kvstore.rpc.explanations import DEPARTURE
from kvstore.rpc.generated import admin_pb2 as admin
from kvstore.rpc.generated import kvstore_pb2 as pb


@pytest.fixture
def peer(tmp_path):
    tmp_path.chmod(0o700)
    daemon = open_daemon(config_at(tmp_path))
    peer = Peer(daemon.address.target)
    peer.say_hello()
    peer.address = daemon.address.target
    yield peer
    peer.channel.close()
    daemon.stop(0.0)


def look_up(peer: Peer, chain, session: str) -> None:
    match = peer.lookup(chain, hints=pb.Hints(session=session))
    if match.lease:
        peer.call("Release", pb.ReleaseRequest(boot_epoch=peer.hello.boot_epoch, leases=[match.lease]))


def test_it_says_what_became_of_a_session_and_what_goes_next(peer):
    chain = peer.chain(3, 1)
    peer.put(chain, [body(block) for block in range(3)])
    report = pb.ReportRequest(namespace_id=peer.hello.namespace_id, prefix=chain.hash_at(0), reason="wrong")
    peer.call("Report", report)
    peer.put(peer.chain(2, 2), [body(0), body(1)])
    look_up(peer, chain, "a7")
    said = run("explain", "--connect", peer.address, "--session", "a7")
    assert said.exit_code == 0, said.stderr
    assert re.search(r"session 'a7', v4-tiny, \S+ s ago", said.stdout)
    assert "asked for 385 tokens (3 whole blocks), started cold; rows reach 0" in said.stdout
    assert re.search(r"block 0 \(tokens 0 to 127\) was dropped \S+ s ago: a worker reported wrong bytes", said.stdout)
    assert "no stored chain begins as it does; one other is stored, the longest to block 1" in said.stdout
    assert re.search(
        r"next to be evicted, by lru:\n  on host, for namespace [0-9a-f]{8}: rows of block 1 ", said.stdout
    )
    assert "lru puts it first of 1 that nothing stands on and nobody holds" in said.stdout


def test_objects_are_told_in_runs_with_class_and_place(peer):
    chain = peer.chain(5, 3)
    peer.put(chain, [body(block) for block in range(5)])
    look_up(peer, chain, "s")
    said = run("explain", "--connect", peer.address).stdout
    assert "objects of the 5 deepest blocks it found, by class: 5 session" in said
    assert re.search(r"blocks 0 to 3: rows, session, on host, used 0 times, .*; not evictable: something stands", said)
    assert re.search(r"block 4: rows, session, on host, used 1 times, .*; 0 of 1 candidates on host go before it", said)


def test_a_chain_is_asked_for_by_a_file_of_hashes(peer, tmp_path):
    chain = peer.chain(2, 4)
    peer.put(chain, [body(0), body(1)])
    (tmp_path / "chain.txt").write_text("\n".join(chain.hash_at(block).hex() for block in range(2)) + "\n")
    (tmp_path / "chain.bin").write_bytes(chain.hashes)
    for name in ("chain.txt", "chain.bin"):
        said = run("explain", "--connect", peer.address, "--hashes", tmp_path / name, "--json")
        (lookup,) = json.loads(said.stdout)["lookups"]
        assert (lookup["rows_tokens"], lookup["reason"], lookup["ghost"]) == (256, "state missing", None)
        assert lookup["namespace"] == peer.hello.namespace_id.hex()
        assert [(found["block"], found["class"]) for found in lookup["objects"]] == [(1, "session"), (0, "session")]


def test_json_says_all_that_the_daemon_said(peer):
    look_up(peer, peer.chain(2, 5), "j")
    facts = json.loads(run("explain", "--connect", peer.address, "--json").stdout)
    assert set(facts) == {"policy", "uptime_seconds", "ghosts", "lookups", "next_victims"}
    (lookup,) = facts["lookups"]
    assert (lookup["session"], lookup["reason"], lookup["plan"]) == ("j", "never seen", "cold")
    assert lookup["missing_block"] == 0 and lookup["seconds_ago"] >= 0
    message = admin.LookupExplanation.DESCRIPTOR.fields_by_name
    assert len(message) == len(lookup) + len(lookup["nearest"]) - 1 + 1, "state_ghost_block lies in state_ghost"


def test_errors_are_one_sentence(peer, tmp_path):
    said = run("explain", "--connect", peer.address, "--session", "nobody")
    assert said.exit_code == 2 and said.stderr.startswith("kvstore: ") and "'nobody'" in said.stderr
    said = run("explain", "--connect", f"unix:{tmp_path}/none.sock")
    assert said.exit_code == 2 and "no daemon answers" in said.stderr


def test_before_any_lookup_there_is_nothing_to_tell(peer):
    assert run("explain", "--connect", peer.address).stdout == "no lookup since the daemon's start\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "has no hashes"),
        (b"\n\n", "has no hashes"),
        (b"\xff" * 33, "has 33 bytes"),
        (b"ab" * 32 + b"\nab\n", "chain:2: this is no prefix hash"),
        (b"zz" * 16 + b"\n", "has 33 bytes"),
    ],
)
def test_a_broken_file_of_hashes_is_refused_in_words(tmp_path, content, says):
    (tmp_path / "chain").write_bytes(content)
    with pytest.raises(InvalidInput, match=re.escape(says)):
        read_hashes(tmp_path / "chain")


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(InvalidInput, match="none cannot be read"):
        read_hashes(tmp_path / "none")


WORDS = {
    MissReason.NONE: "nothing is missing",
    MissReason.NEVER_SEEN: "block 7 (tokens 896 to 1023) was never stored, not since the daemon's start 60 s ago",
    MissReason.STATE_MISSING: "no state at the end of block 7 (tokens 896 to 1023): none was taken",
    MissReason.SHORT_PROMPT: "shorter than one boundary",
    MissReason.SLOWER_THAN_RECOMPUTE: "longer to load than to compute",
    MissReason.PARENT_UNKNOWN: "a tail was asked for behind block 7",
    MissReason.UPLOADING: "block 7 (tokens 896 to 1023) is being written right now",
    MissReason.COLDER: "is stored, but not in host memory",
    MissReason.NAMESPACE_DIFFERS: "3 blocks are under one of the same model that differs in revision, block_tokens",
}
GHOSTLY = {
    Departure.EVICTED: "was evicted from disk by lru 30 s ago to make room for frames of up to 32.0 KiB, 5 min after",
    Departure.EXPIRED: "expired 30 s ago, unused for 5 min",
    Departure.CORRUPT: "its bytes failed their checksum",
    Departure.REPORTED: "a worker reported wrong bytes",
    Departure.UNFINISHED: "its upload broke off 30 s ago",
    Departure.WITH_PARENT: "because rows that it stood on were lost",
    Departure.REFUSED: "was refused 30 s ago",
}


def lookup_of(reason: MissReason, **changes) -> admin.LookupExplanation:
    return admin.LookupExplanation(
        session="s", model="m", seconds_ago=3.0, prompt_tokens=2000, block_tokens=LAYOUT.block_tokens,
        kind=pb.PLAN_KIND_COLD, reason=MISS_REASON.to_wire(reason), missing_block=7,
        differing_fields=["revision", "block_tokens"], namesake_rows=3, **changes,
    )  # fmt: skip


def words_of(lookup: admin.LookupExplanation) -> str:
    return "\n".join(told(admin.ExplainResponse(lookups=[lookup], policy="lru", uptime_seconds=60.0)))


@pytest.mark.parametrize("reason", WORDS)
def test_each_reason_has_its_words(reason):
    assert WORDS[reason] in words_of(lookup_of(reason))


@pytest.mark.parametrize("why", Departure)
def test_each_departure_has_its_words(why):
    ghost = admin.Ghost(
        departure=DEPARTURE.to_wire(why), seconds_ago=30.0, age_seconds=300.0,
        room_for=admin.RoomOwner(tier=pb.TIER_DISK, slot_pages=8),
    )  # fmt: skip
    for reason in set(MissReason) - set(WORDS) | {MissReason.NEVER_SEEN, MissReason.STATE_MISSING}:
        assert GHOSTLY[why] in words_of(lookup_of(reason, ghost=ghost)), reason
    other = words_of(lookup_of(MissReason.STATE_MISSING, state_ghost=ghost, state_ghost_block=5))
    assert "the deepest that there was, at the end of block 5, " + GHOSTLY[why][:3] in other or GHOSTLY[why] in other


def test_a_lookup_whose_blocks_left_since_says_so():
    assert "what it found has left the store since" in words_of(lookup_of(MissReason.NEVER_SEEN, rows_tokens=512))
