"""What a worker process does in the tests of leases, each on a client of its own that is attached to the daemon.

Started as `lease_worker.py ROLE ADDRESS ...`. It says one JSON value a line and fails on the first wrong byte.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable

import numpy as np
from crash_tools import LAYOUTS, PATIENT, Document

from kvstore.client import shared, target
from kvstore.client.client import Client
from kvstore.client.connect import connect
from kvstore.client.match import Blocks, ClientMatch
from kvstore.client.settings import Bounds

CANARY = 0xEE
DEMO = 1  # which of LAYOUTS: rows of 21 KB, states of 243 KB in a dozen slots
RECENT = 30  # documents that a reader chooses from: somewhat more than the smallest host tier holds


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


def attached(address: str) -> Client:
    """A client that goes through shared memory, with a staging region as small as will do."""
    client = connect(
        address, layout=LAYOUTS[DEMO], timeouts=PATIENT, can_replay=False, bounds=Bounds(staging_bytes=4 << 20)
    )
    assert client.is_attached, client.counters
    return client


def is_right(blocks: Blocks, document: Document) -> bool:
    """Whether every byte is the document's. A document can be resumed at its end alone."""
    assert blocks.plan.tokens == document.end_tokens
    rows, state = document.rows(0, document.blocks), document.state()
    assert blocks.state is not None
    found = [(blocks.rows[name], array) for name, array in rows.items()]
    found += [(blocks.state[name], array) for name, array in state.items()]
    return all(
        len(here) == len(array) and all(np.array_equal(one, other) for one, other in zip(here, array, strict=True))
        for here, array in found
    )


# -- leases under fire --------------------------------------------------------------------------
class Reader:
    """Reads recent documents in every way there is, and sometimes holds on for longer than its lease."""

    WAYS = ("copy", "verify", "views", "released copy", "released views")

    def __init__(self, client: Client, newest: np.memmap, lease_seconds: float, seed: int) -> None:
        self.seen: Counter[str] = Counter()
        self._client, self._newest, self._lease_seconds = client, newest, lease_seconds
        self._rng = random.Random(seed)

    def read(self, way: str, *, past_lease: bool) -> bool:
        """False where the document is not there any more."""
        newest = int(self._newest[0])
        document = Document(DEMO, self._rng.randrange(max(0, newest - RECENT), newest + 1))
        began = time.monotonic()
        match = self._client.lookup(document.tokens())
        if not match.plan.tokens:
            self.seen["absent"] += 1
            return False
        if way.startswith("released"):
            match.release()  # now nothing holds the bytes, and only the stamps tell what became of them
            time.sleep(self._rng.choice((0.0, 0.0, 0.01, 0.1)))
        if past_lease and not way.endswith("views"):
            time.sleep(1.1 * self._lease_seconds)
        if way.endswith("views"):
            self._view(match, document, way, began, past_lease=past_lease)
        else:
            self._copy(match, document, way)
        match.release()
        return True

    def _copy(self, match: ClientMatch, document: Document, way: str) -> None:
        with self._client.fetch(match, verify=way == "verify") as blocks:
            if not blocks.plan.tokens:
                self.seen[f"{way}: miss"] += 1
                return
            assert is_right(blocks, document), f"{way} gave other bytes than {document}"
            self.seen[f"{way}: right"] += 1

    def _view(self, match: ClientMatch, document: Document, way: str, began: float, *, past_lease: bool) -> None:
        with self._client.fetch(match, views=True) as blocks:
            if not blocks.plan.tokens:
                self.seen[f"{way}: miss"] += 1
                return
            if past_lease:
                time.sleep(1.1 * self._lease_seconds)
            time.sleep(self._rng.choice((0.0, 0.02, 0.1)))
            was_right = is_right(blocks, document)  # at release: after writers had their time
            if blocks.is_valid:
                assert was_right, f"views said to be valid show other bytes than {document}"
                self.seen[f"{way}: right"] += 1
                return
            if way == "views" and time.monotonic() - began < self._lease_seconds:
                raise AssertionError(f"views of {document} became invalid under their lease")
            self.seen[f"{way}: invalid"] += 1
            self.seen[f"{way}: shows others' bytes"] += not was_right


def reader(address: str, newest_file: str, lease_seconds: str, rounds: str, sleeps: str, seed: str) -> None:
    client = attached(address)
    reading = Reader(client, np.memmap(newest_file, np.int64, "r"), float(lease_seconds), int(seed))
    for number in range(int(rounds)):
        way = Reader.WAYS[number % len(Reader.WAYS)]
        past_lease = number % 2 == 0 and number < 2 * int(sleeps)
        while not reading.read(way, past_lease=past_lease) and past_lease:
            pass  # what is to be seen there has to be seen
    client.close()
    say({"seen": reading.seen, "counters": client.counters})


def writer(address: str, newest_file: str) -> None:
    """Puts one document after another, until it is killed."""
    client, newest = attached(address), np.memmap(newest_file, np.int64, "r+")
    for number in range(int(newest[0]) + 1, 1 << 40):
        if Document(DEMO, number).put(client) and client.flush(20):
            newest[0] = number


# -- stopped past the lease ---------------------------------------------------------------------
def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


class StoppingCopy:
    """Stops this process once, between two pieces of a copy out of shared memory; looks at what came after that."""

    def __init__(self, what: str) -> None:
        self.has_stopped = self.saw_change = self.saw_canary = False
        if what == "state":
            self._join = target.join
            shared.join = self.join  # as `copied_state` calls it
        else:
            kind = target.ComponentTarget if what == "into" else target.PackedTarget
            real = kind.copy

            def copy(self_, row, count, data, offset, spacing):
                if self.has_stopped or count < 2:
                    return real(self_, row, count, data, offset, spacing)
                real(self_, row, 1, data, offset, spacing)
                nbytes = LAYOUTS[DEMO].rows.nbytes
                self._stop([np.ndarray((count - 1, nbytes), np.uint8, data, offset + spacing, (spacing, 1))])
                real(self_, row + 1, count - 1, data, offset + spacing, spacing)
                self._look([array[row + 1 : row + count] for array in self_.arrays(row + count).values()])

            kind.copy = copy

    def join(self, pieces, whole) -> None:
        if self.has_stopped:
            return self._join(pieces, whole)
        done = sum(map(len, pieces[:3]))
        self._join(pieces[:3], whole)
        self._stop(pieces[3:])
        self._join(pieces[3:], whole[done:])
        self._look([whole[done:]])

    def _stop(self, still_to_come) -> None:
        self.has_stopped = True
        before = [array.copy() for array in still_to_come]
        stop()
        self.saw_change = not any(np.array_equal(*pair) for pair in zip(before, still_to_come, strict=True))

    def _look(self, copied) -> None:
        self.saw_canary = are_canaries(copied)


def stopped(address: str, number: str, how: str) -> None:
    """Stops itself while it holds a match or views, or inside a copy; says what it has when it goes on."""
    client, document = attached(address), Document(DEMO, int(number))
    tokens = document.tokens()
    client.fetch(client.lookup(tokens)).__exit__(None, None, None)  # memory is mapped, buffers are there
    before = Counter(client.counters)
    stopping = StoppingCopy(how) if how in ("copy", "verify", "into", "state") else None
    match = client.lookup(tokens)
    assert match.plan.tokens == document.end_tokens, client.counters
    said: dict[str, object] = {}
    if how == "matched":
        stop()
    if how == "views":
        with client.fetch(match, views=True) as views:
            assert is_right(views, document) and views.is_valid
            stop()
            said["valid"] = views.is_valid
            said["right"] = is_right(views, document)
            said["canary"] = are_canaries(block for array in views.rows.values() for block in array)
            assert views._views is not None
            views._views._valid_until = float("inf")  # no clock: the stamps alone have to tell
            said["valid by stamps"] = views.is_valid
    into = document.rows(0, document.blocks) if how == "into" else None
    if into is not None:
        for array in into.values():
            array[:] = 0
    blocks = client.fetch(match, into=into, verify=how == "verify")
    said["found"] = "nothing" if not blocks.plan.tokens else "right" if is_right(blocks, document) else "WRONG"
    if stopping is not None:
        assert stopping.has_stopped
        said |= {"changed": stopping.saw_change, "canary": stopping.saw_canary}
    said["counters"] = Counter(client.counters) - before
    say(said)


def are_canaries(arrays: Iterable[np.ndarray]) -> bool:
    """Whether most of the bytes are: a slot may have kept some of its former owner's behind the canary's end."""
    found = np.concatenate([array.reshape(-1) for array in arrays])
    return bool((found == CANARY).mean() > 0.5)


# -- killed -------------------------------------------------------------------------------------
def load(address: str, seed: int) -> None:
    """Leases, puts and fetches at random, until it is killed; goes on without a word when the daemon is."""
    rng = random.Random(seed)
    client = connect(
        address, layout=LAYOUTS[DEMO], timeouts=PATIENT, can_replay=False, bounds=Bounds(staging_bytes=4 << 20)
    )
    held = []
    while True:
        document = Document(DEMO, rng.randrange(200))
        if rng.random() < 0.4:
            document.put(client)
            if rng.random() < 0.5:
                client.flush(5)
            continue
        match = client.lookup(document.tokens())
        blocks = client.fetch(match, views=rng.random() < 0.5, verify=rng.random() < 0.5)
        if blocks.plan.tokens:
            was_right = is_right(blocks, document)
            assert was_right or not blocks.is_valid, f"other bytes than {document}"
        held.append((match, blocks))  # leases that nobody releases
        del held[:-8]


def survivor(address: str, seed: int, facts: np.memmap) -> None:
    """Reads and puts for ever; `facts`: right reads, bytes out of shared memory, wrong reads."""
    rng = random.Random(seed)
    client = connect(
        address, layout=LAYOUTS[DEMO], timeouts=PATIENT, can_replay=False, bounds=Bounds(staging_bytes=4 << 20)
    )
    while True:
        document = Document(DEMO, rng.randrange(40))
        with client.lookup(document.tokens()) as match, client.fetch(match, verify=rng.random() < 0.5) as blocks:
            found = blocks.plan.tokens
            if found:
                facts[0 if is_right(blocks, document) else 2] += 1
        facts[1] = client.counters.get("fetched_shared_bytes", 0)
        if not found:
            document.put(client)
            time.sleep(0.01)


def nursery(address: str, facts_file: str) -> None:
    """Forks workers as it is told ("load SEED", "survivor SEED INDEX") and says their process ids.

    It has no client itself: what it forks has imported everything, and is a worker within milliseconds.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever dies is gone at once
    facts = np.memmap(facts_file, np.int64, "r+").reshape(-1, 3)
    say("ready")
    for line in sys.stdin:
        role, seed, *index = line.split()
        pid = os.fork()
        if pid:
            say(pid)
            continue
        try:
            sys.stdin.close()
            if role == "load":
                load(address, int(seed))
            else:
                survivor(address, int(seed), facts[int(index[0])])
        except BaseException:
            sys.excepthook(*sys.exc_info())
            facts[int(index[0]) if index else -1, 2] += 1  # a worker never fails, whatever the daemon does
        os._exit(1)


# -- forking ------------------------------------------------------------------------------------
def forking(address: str) -> None:
    """Forks with views, a match and staging in hand; says what became of the child's and of the parent's."""
    client, document, other = attached(address), Document(DEMO, 4), Document(DEMO, 9)
    while not client.has_staging:
        time.sleep(0.01)
    assert document.put(client) and client.flush(30)
    tokens = document.tokens()
    match = client.lookup(tokens)
    views = client.fetch(match, views=True)
    assert is_right(views, document) and views.is_valid
    reading, writing = os.pipe()
    busy = threading.Thread(target=lambda: [document.read(client) for _ in range(200)])  # forked in the middle of calls
    busy.start()
    child = os.fork()
    if not child:
        lanes = client._link.attaching.lanes
        assert lanes is not None
        said = {
            "attached": client.is_attached,
            "connected": client.is_connected,
            "views valid": views.is_valid,
            "found": client.lookup(tokens).plan.tokens,
            "fetched": client.fetch(match).plan.tokens,
            "viewed": client.fetch(match, views=True).plan.tokens,
            "put": other.put(client),
            "flushed": client.flush(5),
            "pinned": client.pin(tokens, 60) is not None,
            "handed over": client.put_handoff(tokens, [b"bytes"]),
            "taken": client.take_handoff(tokens) is not None,
            "lanes": len(lanes._all),
        }
        match.release()
        client.close()
        say(said | {"closed": True})
        os.write(writing, b"x")
        time.sleep(600)
    right = 0
    while right < 20 or not select.select([reading], [], [], 0)[0]:
        assert document.read(client) == document.end_tokens, client.counters
        right += 1
    busy.join()
    assert other.put(client) and client.flush(30) and other.read(client) == other.end_tokens
    facts = {"right": right, "attached": client.is_attached, "views valid": views.is_valid}
    say(facts | {"attaches": client.counters["attaches"]})
    say(child)
    time.sleep(600)


ROLES = {"reader": reader, "writer": writer, "stopped": stopped, "nursery": nursery, "forking": forking}

if __name__ == "__main__":
    ROLES[sys.argv[1]](*sys.argv[2:])
