"""Requests with flipped, cut and spliced bytes: the real store answers or refuses, and never stumbles."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest
from daemon_peer import LAYOUT, WORKER

from kvstore.core.checksum import content_checksum
from kvstore.core.errors import KVStoreError
from kvstore.core.fingerprint import fingerprint
from kvstore.core.keys import BlockKey, Chain
from kvstore.core.match import Hints, InferenceMode
from kvstore.core.prefix import hash_blocks
from kvstore.core.reserve import ObjectSpec
from kvstore.daemon.calls import parsed
from kvstore.daemon.service import KVStoreService
from kvstore.rpc import convert, wire
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.layouts import layout_to_wire
from kvstore.rpc.methods import KVSTORE_SERVICE, METHODS, RAW_METHODS
from kvstore.store.settings import StoreConfig
from kvstore.store.store import Store

ROUNDS = 2000
UNARY = [method for method in METHODS if method.service == KVSTORE_SERVICE and method.name not in RAW_METHODS]


@pytest.fixture
def store():
    store = Store.open(StoreConfig(host_bytes=8 << 20, secret=bytes(32)))
    assert store.quiesce(10)
    yield store
    store.contents()  # checks every invariant of the planner
    store.close(0.0)


@pytest.fixture
def service(store):
    return KVStoreService(store, 30.0, "test")


def valid_requests(service: KVStoreService) -> dict[str, object]:
    """One sensible request of each kind, after a chain of three blocks was put."""
    hello_request = pb.HelloRequest(layout=layout_to_wire(LAYOUT), fingerprint=fingerprint(LAYOUT), worker_id=WORKER)
    hello = service.hello(hello_request, _soon())
    space, epoch = hello.namespace_id, hello.boot_epoch
    chain = Chain(0, hello.root, hash_blocks(hello.root, bytes(4 * LAYOUT.block_tokens * 3), LAYOUT.block_tokens))
    wire_chain = convert.chain_to_wire(chain)
    body = bytes(LAYOUT.rows.nbytes)
    specs = [ObjectSpec(block, 0, len(body), content_checksum([body])) for block in range(3)]
    hints = convert.hints_to_wire(Hints("a7", 1, InferenceMode.THINK_HIGH, "chat", True, 2.0, (128,), 60.0))
    reserve = pb.ReserveRequest(
        namespace_id=space,
        worker_id=WORKER,
        chain=wire_chain,
        lineage=bytes(16),
        objects=convert.specs_to_wire(specs),
        hints=hints,
    )
    reserved = service.reserve(reserve, _soon())
    header = pb.PutHeader(namespace_id=space, boot_epoch=epoch, reservation=reserved.reservation, objects=[0, 1, 2])
    frame = wire.frame_put(header, [body] * 3)
    assert set(service.put(iter([frame]), _soon()).statuses) == {pb.PUT_STATUS_STORED}
    lookup = pb.LookupRequest(
        namespace_id=space,
        worker_id=WORKER,
        chain=wire_chain,
        prompt_tokens=LAYOUT.block_tokens * 3 + 1,
        hints=hints,
        can_replay=True,
        worker_flops=1e12,
    )
    lease = service.lookup(lookup, _soon()).lease
    return {
        "Hello": hello_request,
        "Lookup": lookup,
        "Locate": pb.LocateRequest(
            namespace_id=space, boot_epoch=epoch, lease=lease, min_blocks=3, wait_seconds=0.001, seen_layers=2
        ),
        "Reserve": reserve,
        "Commit": pb.CommitRequest(
            namespace_id=space, boot_epoch=epoch, reservation=reserved.reservation, durable=True
        ),
        "Release": pb.ReleaseRequest(boot_epoch=epoch, leases=[lease, 77]),
        "Report": pb.ReportRequest(namespace_id=space, prefix=chain.hash_at(2), reason="test"),
        "Session": pb.SessionRequest(
            namespace_id=space, session="a7", event=pb.SESSION_EVENT_OPENED, expected_gap_seconds=3.0
        ),
        "Prefetch": pb.PrefetchRequest(
            namespace_id=space, worker_id=WORKER, chain=wire_chain, prompt_tokens=LAYOUT.block_tokens * 3
        ),
        "Pin": pb.PinRequest(namespace_id=space, chain=wire_chain, ttl_seconds=5.0),
        "Unpin": pb.UnpinRequest(pin=1),
        "Fetch": pb.FetchRequest(
            namespace_id=space,
            boot_epoch=epoch,
            lease=lease,
            chain=wire_chain,
            end_row=3,
            states=[pb.ObjectName(block=2, group=1)],
        ),
        "Put": header,
    }


def mutated(raw: bytes, chance: random.Random) -> bytes:
    out = bytearray(raw)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(out) + 1)
        kind = chance.randrange(4)
        if kind == 0 and place < len(out):
            out[place] ^= 1 << chance.randrange(8)
        elif kind == 1 and place < len(out):
            out[place] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del out[place : place + chance.randint(1, 8)]
        else:
            out[place:place] = out[: chance.randint(0, 40)]
    return bytes(out)


@pytest.mark.parametrize("method", UNARY, ids=lambda method: method.name)
def test_a_mutated_request_is_answered_or_refused(service, method):
    raw = valid_requests(service)[method.name].SerializeToString()
    call = getattr(service, method.name.lower())
    answers = 0
    for seed in range(ROUNDS):
        try:
            call(parsed(method.request, mutated(raw, random.Random(seed))), _soon())
            answers += 1
        except KVStoreError:
            continue
        except Exception as error:
            pytest.fail(f"seed {seed}: {error!r}")
    assert 0 < answers < ROUNDS or method.name in ("Unpin", "Release")


def test_a_mutated_fetch_is_answered_or_refused(service):
    raw = valid_requests(service)["Fetch"].SerializeToString()
    served = refused = 0
    for seed in range(ROUNDS):
        try:
            for frame in service.fetch(parsed(pb.FetchRequest, mutated(raw, random.Random(seed))), _soon()):
                served += len(wire.parse_fetch(frame).data)
        except KVStoreError:
            refused += 1
        except Exception as error:
            pytest.fail(f"seed {seed}: {error!r}")
    assert served and refused


def test_a_mutated_upload_stores_what_was_announced_or_nothing(service, store):
    hello = service.hello(
        pb.HelloRequest(layout=layout_to_wire(LAYOUT), fingerprint=fingerprint(LAYOUT), worker_id=WORKER), _soon()
    )
    outcomes = Counter()
    for seed in range(ROUNDS):
        chance = random.Random(seed)
        bodies = [chance.randbytes(LAYOUT.rows.nbytes) for _ in range(3)]
        chain = Chain(0, hello.root, chance.randbytes(96))
        reserved = service.reserve(
            pb.ReserveRequest(
                namespace_id=hello.namespace_id,
                worker_id=WORKER,
                chain=convert.chain_to_wire(chain),
                lineage=bytes(16),
                objects=convert.specs_to_wire(
                    [ObjectSpec(block, 0, len(body), content_checksum([body])) for block, body in enumerate(bodies)]
                ),
            ),
            _soon(),
        )
        assert set(reserved.statuses) == {pb.RESERVE_STATUS_WANTED}
        mine = {"namespace_id": hello.namespace_id, "boot_epoch": hello.boot_epoch, "reservation": reserved.reservation}
        frames = [wire.frame_put(pb.PutHeader(**mine, objects=[0, 1, 2]), bodies[:1]), wire.frame_put(None, bodies[1:])]
        place = chance.randrange(2)
        frames[place] = mutated(frames[place], chance)
        try:
            outcomes.update(service.put(iter(frames), _soon()).statuses)
        except KVStoreError:
            outcomes["refused"] += 1
        except Exception as error:
            pytest.fail(f"seed {seed}: {error!r}")
        service.commit(pb.CommitRequest(**mine), _soon())
        keys = [BlockKey(chain.hash_at(block), 0) for block in range(3)]
        for opened, body in zip(store.open_objects(0, keys, time.monotonic() + 10), bodies, strict=True):
            with opened:
                assert opened.is_missing or b"".join(opened.pieces) == body, seed
    assert outcomes[pb.PUT_STATUS_STORED] and outcomes[pb.PUT_STATUS_CORRUPT] and outcomes["refused"]


def _soon() -> float:
    return time.monotonic() + 5.0
