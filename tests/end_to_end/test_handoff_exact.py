"""A request that is stopped at any token goes on in another process, through a real daemon, bit for bit."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("transformers")
import torch

import kvstore
from kvstore.engines.transformers import HandoffOutcome, Worker, build_demo_model, demo_layout

SEED = 20
GOES_ON = 8  # tokens after each cut: two CSA entries at least
MUST_BE_CUT = {127, 128, 129, 255, 256, 257}  # around the ends of blocks: HCA tails of 127, 0 and 1 tokens

OTHER_PROCESS = """
import json, sys, time
import kvstore, torch
from kvstore.engines.transformers import Worker, build_demo_model, demo_layout
torch.set_num_threads(1)
worker = Worker(build_demo_model(), demo_layout())
client = kvstore.connect(sys.argv[1], layout=worker.layout)
for line in sys.stdin:
    asked = json.loads(line)
    run = worker.resume(asked["transcript"], asked["count"], client)
    client.flush(20)
    logits = run.logits.numpy().tobytes()
    told = {"handoff": run.handoff.value, "output": run.output, "logits": len(logits), "counters": client.counters}
    sys.stdout.buffer.write(json.dumps(told).encode() + b"\\n" + logits)
    sys.stdout.buffer.flush()
"""


@dataclass(frozen=True)
class Told:
    handoff: HandoffOutcome
    output: list[int]
    logits: bytes
    counters: dict[str, int]


class OtherProcess:
    """Another worker, spoken to over its pipes."""

    def __init__(self, address):
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER_PROCESS, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def resume(self, transcript, count):
        self.process.stdin.write(json.dumps({"transcript": transcript.tolist(), "count": count}).encode() + b"\n")
        self.process.stdin.flush()
        told = json.loads(self.process.stdout.readline())
        logits = self.process.stdout.read(told["logits"])
        return Told(HandoffOutcome(told["handoff"]), told["output"], logits, told["counters"])

    def end(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def worker():
    return Worker(build_demo_model(), demo_layout())


@pytest.fixture
def daemon(tmp_path):
    """A daemon's process and address."""
    tmp_path.chmod(0o700)
    command = [sys.executable, "-m", "kvstore.cli.main", "serve", "--listen", f"unix:{tmp_path}/s"]
    process = subprocess.Popen([*command, "--host-bytes", "64MiB"], stderr=subprocess.DEVNULL)
    yield process, f"unix:{tmp_path}/s"
    process.kill()
    process.wait()


@pytest.fixture
def client(daemon, worker):
    client = kvstore.connect(daemon[1], layout=worker.layout)
    deadline = time.monotonic() + 30
    while not client.is_connected and time.monotonic() < deadline:
        time.sleep(0.02)
    assert client.is_connected
    yield client
    client.close()


@pytest.fixture
def other(daemon, client):
    other = OtherProcess(daemon[1])
    yield other
    other.end()


# prompt tokens, whether its rows are loaded first, where it is cut at the latest, how many cuts, which for certain
RUNS = [
    (1, False, 40, 15, {1, 2, 3, 4, 5}),
    (100, False, 300, 115, {100} | MUST_BE_CUT),
    (384, False, 440, 30, {384, 385}),
    (700, True, 790, 40, {700, 767, 768, 769}),
]


def test_200_random_cuts_are_exact(worker, client, other):
    chance = np.random.default_rng(SEED)
    prompts = chance.integers(2, 2048, 1000).astype(np.int32)
    cuts_made = []
    for number, (prompt_tokens, is_loaded, last, count, certain) in enumerate(RUNS):
        prompt = prompts[number : number + prompt_tokens]  # of four prompts none begins as another does
        cuts = cuts_of(chance, prompt_tokens, last, count, certain)
        whole = worker.run(prompt, last - prompt_tokens + 1 + GOES_ON)
        if is_loaded:
            worker.run(prompt, 1, client)
            assert client.flush(20)
        request = worker.start(prompt, len(whole.output), client)
        assert (request.plan.tokens > 0) == is_loaded
        loaded_bytes = request.plan.tokens // 128 * worker.layout.rows.nbytes
        for turn, held in enumerate(cuts):
            here = held - prompt_tokens + 1  # of the output; the last of them is not in the cache yet
            worker.decode(request, here - len(request.output))
            nbytes = handed_over(worker, request, client, carry_bytes=1 << 30)
            if turn % 2:  # every other one leaves the rows that were loaded to the store; the latest counts
                assert handed_over(worker, request, client, carry_bytes=0) == nbytes - loaded_bytes
            told = other.resume(request.transcript, GOES_ON)
            assert told.handoff is HandoffOutcome.TAKEN, f"cut at {held}: {told.counters}"
            assert tuple(told.output) == whole.output[here : here + GOES_ON], f"cut at {held}"
            assert told.logits == whole.logits[here : here + GOES_ON].numpy().tobytes(), f"cut at {held}"
        cuts_made += cuts
    assert len(cuts_made) == 200 and set(cuts_made) >= MUST_BE_CUT
    assert {held % 4 for held in cuts_made} == {0, 1, 2, 3}
    assert told.counters["handoffs_taken"] == 200


def handed_over(worker, request, client, carry_bytes):
    """How many bytes it took."""
    before = client.counters.get("handoff_bytes_put", 0)
    assert worker.hand_over(request, client, carry_bytes=carry_bytes)
    return client.counters["handoff_bytes_put"] - before


def cuts_of(chance, first, last, count, certain):
    """So many different token counts from `first` to `last`, in order, the certain ones among them."""
    free = np.array(sorted(set(range(first, last + 1)) - certain))
    chosen = chance.choice(free, count - len(certain), replace=False)
    return sorted({*chosen.tolist(), *certain})


def test_what_cannot_be_taken_is_an_ordinary_run(worker, client, other, daemon):
    """Taken by somebody else, garbage, and a daemon that was killed: always an answer, and it says what happened."""
    prompt = np.random.default_rng(SEED + 1).integers(2, 2048, 150).astype(np.int32)
    request = worker.start(prompt, 20)
    worker.decode(request, 9)
    transcript, held = request.transcript, request.transcript[:-1]
    cold = worker.run(transcript, 4)

    def resumed():
        told = other.resume(transcript, 4)
        assert tuple(told.output) == cold.output and told.logits == cold.logits.numpy().tobytes()
        return told

    assert worker.hand_over(request, client)
    assert client.take_handoff(held) is not None
    assert resumed().handoff is HandoffOutcome.MISSED
    assert client.put_handoff(held, [b"no cache at all"])
    assert resumed().handoff is HandoffOutcome.UNREADABLE
    assert worker.hand_over(request, client)
    daemon[0].kill()
    daemon[0].wait()
    assert resumed().handoff is HandoffOutcome.MISSED
    assert not worker.hand_over(request, client)
