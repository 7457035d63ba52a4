"""An exact cache goes through its bytes unchanged at any token, and other bytes are never read as one."""

import random
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from engine_memory_store import MemoryStore

from kvstore.core.errors import InvalidInput
from kvstore.core.match import Snapshots
from kvstore.engines.transformers import HandoffOutcome, Worker, build_demo_model
from kvstore.engines.transformers import handoff as payloads

LINEAGE = bytes(range(16))


@dataclass
class HandingStore(MemoryStore):
    """The memory store with handoffs: one reader each, no clock."""

    handoffs: dict[bytes, bytes] = field(default_factory=dict)

    def put_handoff(self, tokens, payload, ttl_seconds) -> bool:
        self.handoffs[tokens.tobytes()] = b"".join(payload)
        return True

    def take_handoff(self, tokens):
        body = self.handoffs.pop(tokens.tobytes(), None)
        return None if body is None else memoryview(body)


@pytest.fixture(scope="module")
def trace(worker, tokens):
    """A request that decodes on demand, its snapshot at each token: (snapshot, tokens)."""
    request = worker.start(tokens[:1], 264)
    kept = {}
    with torch.inference_mode():
        for _ in range(264):
            worker.decode(request, 1)
            held = request.transcript.size - 1
            kept[held] = worker._form.snapshot(request.cache, held)
    return kept


def same(one, other):
    assert one.tokens == other.tokens
    for left, right in zip(one.layers, other.layers, strict=True):
        assert torch.equal(left.window, right.window)
        for name in {*left.rows, *right.rows}:
            empty = torch.empty(1, 0, 0)
            ours, theirs = left.rows.get(name, empty), right.rows.get(name, empty)
            assert ours.shape[1] == theirs.shape[1] and (not ours.shape[1] or torch.equal(ours, theirs))
        for ours, theirs in ((left.tails, right.tails), (left.overlaps, right.overlaps)):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(*pair) for name in ours for pair in zip(ours[name], theirs[name], strict=True))


def packed(form, snapshot, base=0):
    with torch.inference_mode():
        return memoryview(b"".join(payloads.pack(form, snapshot, base, LINEAGE)))


def test_every_length_comes_back_bit_for_bit(worker, trace):
    form = worker._form
    for held, snapshot in trace.items():
        handed = payloads.unpack(form, packed(form, snapshot), held)
        assert (handed.base, handed.lineage) == (0, LINEAGE)
        same(handed.on(None), snapshot)
    tails = {held: {name: kv.shape[1] for name, (kv, _) in trace[held].layers[2].tails.items()} for held in trace}
    assert tails[127] == {"compressor": 127} and tails[128] == {} and tails[257] == {"compressor": 1}
    assert trace[3].layers[1].tails["indexer"][0].shape == (1, 3, 256), "the tails of CSA are there too"


@pytest.mark.parametrize("base", [128, 256])
def test_rows_below_the_base_are_the_takers(worker, trace, base):
    form = worker._form
    for held in (256, 257, 259, 264):
        snapshot = trace[held]
        body = packed(form, snapshot, base)
        handed = payloads.unpack(form, body, held)
        rows = [
            {name: entries[:, : base // layer.ratio] for name, entries in kept.rows.items()}
            for kept, layer in zip(snapshot.layers, worker.layout.layers, strict=True)
        ]
        same(handed.on(rows), snapshot)
        assert len(packed(form, snapshot)) - len(body) == base // 128 * worker.layout.rows.nbytes


@pytest.mark.parametrize("held", [3, 131])
def test_a_payload_for_other_tokens_or_another_model_is_not_read(worker, trace, held):
    form, body = worker._form, packed(worker._form, trace[held])
    assert payloads.unpack(form, body, held) is not None
    for other in (0, 1, held - 1, held + 1, held + 128):
        assert payloads.unpack(form, body, other) is None
    double = Worker(build_demo_model(dtype=torch.float64), worker.layout)._form
    assert payloads.unpack(double, body, held) is None


@pytest.mark.parametrize("held", [3, 131])
def test_a_cut_or_longer_payload_is_not_read(worker, trace, held):
    form, body = worker._form, bytes(packed(worker._form, trace[held]))
    for end in [*range(0, 400), *range(400, len(body), 997), len(body) - 1]:
        assert payloads.unpack(form, memoryview(body[:end]), held) is None, end
    assert payloads.unpack(form, memoryview(body + b"\0"), held) is None


def test_a_changed_head_is_not_read_and_changed_numbers_are_numbers(worker, trace):
    """No checksum here: the store's guards the bytes. What is read must still be of the right shape and finite."""
    form, held = worker._form, 131
    body = packed(form, trace[held])
    head = len(payloads.pack(form, trace[held], 0, LINEAGE)[0])
    lineage = payloads._HEADER.size - 16
    for place in range(head):
        for bit in range(8):
            changed = bytearray(body)
            changed[place] ^= 1 << bit
            read = payloads.unpack(form, memoryview(changed), held)
            assert (read is None) == (not lineage <= place < payloads._HEADER.size), (place, bit)
    chance = random.Random(5)
    outcomes = set()
    for _ in range(300):
        changed = bytearray(body)
        for _ in range(chance.choice((1, 30))):
            changed[chance.randrange(head, len(body))] = chance.choice((0, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        read = payloads.unpack(form, memoryview(changed), held)
        outcomes.add(read is None)
        if read is not None:
            assert all(torch.isfinite(layer.window).all() for layer in read.layers)
    assert outcomes == {True, False}


def test_a_request_goes_on_from_any_store_that_keeps_it(worker, cold, same, tokens):
    store = HandingStore(worker.layout)
    request = worker.start(tokens[:150], 40)
    worker.decode(request, 7)
    assert worker.hand_over(request, store)
    run = worker.resume(request.transcript, 20, store)
    assert (run.handoff, run.resumed_tokens, run.recomputed_tokens) == (HandoffOutcome.TAKEN, 156, 1)
    whole = cold(tokens[:150], 27)
    assert run.output == whole.output[7:]
    assert run.logits.numpy().tobytes() == whole.logits[7:].numpy().tobytes()
    worker.decode(request, 20)
    same(worker.finish(request), whole)  # who hands over may go on


@pytest.mark.parametrize("carry_bytes", [0, 1 << 30])
def test_a_request_may_move_on_again_and_again(worker, cold, tokens, prefilled, carry_bytes):
    store = HandingStore(worker.layout, rows=prefilled.rows, states=prefilled.states)
    whole = cold(tokens[:500], 40)
    request, done = worker.start(tokens[:500], 40, store), 0
    request.lineage = bytes(16)  # this store has no lineages
    for count in (3, 9, 1, 4):
        worker.decode(request, count)
        assert request.output == list(whole.output[done : done + count])
        assert worker.hand_over(request, store, carry_bytes=carry_bytes)
        done += count
        request = worker.take_over(request.transcript, 40 - done, store)
        assert request.handoff is HandoffOutcome.TAKEN and request.stored_tokens == (0 if carry_bytes else 384)
    worker.decode(request, 40 - done)
    assert worker.finish(request).logits.numpy().tobytes() == whole.logits[done:].numpy().tobytes()


def test_without_a_handoff_it_is_an_ordinary_run(worker, cold, same, tokens):
    store = HandingStore(worker.layout)
    before = worker.handoffs[HandoffOutcome.MISSED]
    for count in (1, 2, 200):
        run = worker.resume(tokens[:count], 3, store)
        assert run.handoff is HandoffOutcome.MISSED
        same(run, cold(tokens[:count], 3))
    assert worker.handoffs[HandoffOutcome.MISSED] == before + 3


def test_what_cannot_be_read_is_counted_and_an_ordinary_run_follows(worker, cold, same, tokens):
    store = HandingStore(worker.layout)
    for body in (b"", b"garbage", b"KVHANDO\x1a" + bytes(500)):
        store.handoffs[tokens[:199].tobytes()] = body
        run = worker.resume(tokens[:200], 3, store)
        assert run.handoff is HandoffOutcome.UNREADABLE
        same(run, cold(tokens[:200], 3))
    assert worker.handoffs[HandoffOutcome.UNREADABLE] >= 3


def test_loaded_rows_are_left_to_the_store_and_must_be_the_same_ones(worker, same, tokens, prefilled):
    store = HandingStore(worker.layout, rows=prefilled.rows, states=prefilled.states)
    request = worker.start(tokens[:700], 20, store)
    assert request.plan.tokens == 640
    worker.decode(request, 3)
    request.lineage = bytes(16)  # this store has no lineages
    sizes = []
    for carry_bytes in (1 << 30, 0):
        assert worker.hand_over(request, store, carry_bytes=carry_bytes)
        sizes.append(len(next(iter(store.handoffs.values()))))
        run = worker.resume(request.transcript, 5, store)
        assert run.handoff is HandoffOutcome.TAKEN
        whole = worker.run(tokens[:700], 8)
        assert run.logits.numpy().tobytes() == whole.logits[3:].numpy().tobytes()
    assert sizes[0] - sizes[1] == 5 * worker.layout.rows.nbytes

    request.lineage = LINEAGE  # rows of another run are there now
    assert worker.hand_over(request, store, carry_bytes=0)
    run = worker.resume(request.transcript, 2, store)
    assert run.handoff is HandoffOutcome.ROWS_GONE
    assert worker.hand_over(request, store, carry_bytes=0)
    store.states.clear()
    store.rows.clear()
    run = worker.resume(request.transcript, 2, store)
    assert run.handoff is HandoffOutcome.ROWS_GONE and run.resumed_tokens == 0


def test_who_took_over_completes_what_was_finished_and_puts_it(worker, tokens):
    """The next turn finds the whole transcript, wherever it was decoded."""
    store = HandingStore(worker.layout, snapshots=Snapshots(every=128, at_output_end=True))
    request = worker.start(tokens[:250], 200, store)
    worker.decode(request, 3)
    assert worker.hand_over(request, store)
    run = worker.resume(request.transcript, 140, store)
    transcript = np.append(request.transcript, np.array(run.output, np.int32))
    assert sorted(len(key) // 4 for key in store.rows) == [128, 256, 384]
    assert store.plan(transcript).tokens == 384 and not store.disagreements
    other = MemoryStore(worker.layout, snapshots=store.snapshots)
    worker.run(transcript, 1, other)
    assert {key: store.rows[key] for key in other.rows} == other.rows, "canonical rows, not those of decoding"


def test_nothing_to_hand_over_before_the_first_token(worker, tokens):
    with pytest.raises(InvalidInput, match="nothing was decoded yet"):
        worker.hand_over(worker.start(tokens[:10], 5), HandingStore(worker.layout))


def zeroed(pairs):
    return {name: tuple(map(torch.zeros_like, pair)) for name, pair in pairs.items()}


def canonical_entries(worker, held):
    """Each layer's entries as a prefill in whole blocks makes them, and behind the last block as decoding does."""
    with torch.inference_mode():
        cache, at = worker._form.new_cache(), 0
        for end in [*range(128, held.size + 1, 128), *range(held.size // 128 * 128 + 1, held.size + 1)]:
            worker._forward(cache, held[at:end])
            at = end
        return [layer.rows for layer in worker._form.snapshot(cache, held.size).layers]


GOES_ON = {"HCA tails": 120}  # an entry of HCA ends 117 tokens later; all else shows at once


@pytest.fixture(scope="module")
def stopped(worker, tokens):
    """At 267 = 2 * 128 + 11 = 66 * 4 + 3 tokens, of which a prefill saw 100: snapshot, transcript, logits behind."""
    request = worker.start(tokens[:100], 300)
    worker.decode(request, 168)
    transcript = request.transcript
    with torch.inference_mode():
        snapshot = worker._form.snapshot(request.cache, 267)
    worker.decode(request, max(GOES_ON.values()))
    return snapshot, transcript, torch.cat(request.logits[168:])


@pytest.mark.parametrize("missing", ["nothing", "HCA tails", "CSA tails", "overlaps", "window", "as-run entries"])
def test_nothing_of_it_can_be_left_out(worker, stopped, missing):
    snapshot, transcript, whole = stopped
    canonical = canonical_entries(worker, transcript[:-1]) if missing == "as-run entries" else []
    layers = []
    for index, layer in enumerate(snapshot.layers):
        if (missing, index) in (("HCA tails", 2), ("CSA tails", 1)):
            layer = replace(layer, tails=zeroed(layer.tails))
        elif missing == "overlaps":
            layer = replace(layer, overlaps=zeroed(layer.overlaps))
        elif missing == "window":
            layer = replace(layer, window=torch.zeros_like(layer.window))
        elif missing == "as-run entries":
            layer = replace(layer, rows=canonical[index])
        layers.append(layer)
    store = HandingStore(worker.layout)
    with torch.inference_mode():
        payload = payloads.pack(worker._form, replace(snapshot, layers=tuple(layers)), 0, LINEAGE)
    store.put_handoff(transcript[:-1], payload, 1.0)
    count = GOES_ON.get(missing, 8)
    run = worker.resume(transcript, count, store)
    assert run.handoff is HandoffOutcome.TAKEN
    assert (run.logits.numpy().tobytes() == whole[:count].numpy().tobytes()) == (missing == "nothing")
