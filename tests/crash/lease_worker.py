"""What a worker process does in the tests of leases, each on a client of its own that is attached to the daemon.

Started as `lease_worker.py ROLE ADDRESS ...`. It says one JSON value a line and fails on the first wrong byte.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter

import numpy as np
from crash_tools import Document
from lease_clients import DEMO, attached, connected, is_right, say, takes_layers
from lease_stops import forking, stopped

from kvstore.client.client import Client
from kvstore.client.match import ClientMatch

RECENT = 30  # documents that a reader chooses from: somewhat more than the smallest host tier holds


# -- leases under fire --------------------------------------------------------------------------
class Reader:
    """Reads recent documents in every way there is, and sometimes holds on for longer than its lease."""

    WAYS = ("copy", "verify", "views", "released copy", "released views", "layers", "released layers")

    def __init__(self, client: Client, newest: np.memmap, lease_seconds: float, seed: int) -> None:
        self.seen: Counter[str] = Counter()
        self._client, self._newest, self._lease_seconds = client, newest, lease_seconds
        self._rng = random.Random(seed)

    def read(self, way: str, *, past_lease: bool) -> bool:
        """False where the document is not there any more."""
        newest = int(self._newest[0])
        document = Document(DEMO, self._rng.randrange(max(0, newest - RECENT), newest + 1))
        began = time.monotonic()
        match = self._client.lookup(document.tokens(), order="layers" if way.endswith("layers") else "blocks")
        if not match.plan.tokens:
            self.seen["absent"] += 1
            return False
        if way.startswith("released"):
            match.release()  # now nothing holds the bytes, and only the stamps tell what became of them
            time.sleep(self._rng.choice((0.0, 0.02, 0.2)))
        if past_lease and not way.endswith("views"):
            time.sleep(1.1 * self._lease_seconds)
        if way.endswith("views"):
            self._view(match, document, way, began, past_lease=past_lease)
        elif way.endswith("layers"):
            self._layers(match, document, way)
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

    def _layers(self, match: ClientMatch, document: Document, way: str) -> None:
        """Of copies that are still being filled, half of the time: then only the end tells."""
        can_abandon = self._rng.random() < 0.5
        with self._client.fetch(match, order="layers", can_abandon=can_abandon) as blocks:
            if not blocks.plan.tokens:
                self.seen[f"{way}: miss"] += 1
                return
            is_believed, was_right = takes_layers(blocks, document)
            assert was_right or (can_abandon and not is_believed), f"{way} gave other bytes than {document}"
            self.seen[f"{way}: right" if is_believed else f"{way}: abandoned"] += 1

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


# -- killed -------------------------------------------------------------------------------------
def load(address: str, seed: int) -> None:
    """Leases, puts and fetches at random, until it is killed; goes on without a word when the daemon is."""
    rng = random.Random(seed)
    client = connected(address)
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
    client = connected(address)
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


ROLES = {"reader": reader, "writer": writer, "stopped": stopped, "nursery": nursery, "forking": forking}

if __name__ == "__main__":
    ROLES[sys.argv[1]](*sys.argv[2:])
