"""SIGKILL of a real daemon at random moments under load, always on the same folder.

After each restart: what is there is right, and what was acknowledged as durable is there. Bytes are made from names,
so readers verify what they never saw written. One seed gives the same documents and the same delays.
"""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

from crash_tools import LAYOUTS, DaemonProcess, Document, client_of, daemon

from kvstore.tiers.verify import verify_folder

KILLS = 50
KILLS_AT_START = 6  # of these: before the daemon was ready
KILLS_WHILE_EVICTING = 8
# What these documents take on disk stays below its 128 MiB: nothing that was acknowledged may be missing.
MOST_DOCUMENTS = (400, 150)


class Load:
    """Writers and readers of one daemon's life, each with a client of its own; they end when it dies."""

    def __init__(self, process: DaemonProcess, seed: int, fresh: list[int], most: tuple[int, int]) -> None:
        self.durable: set[Document] = set()
        self.attempted: set[Document] = set()
        self.verified = 0
        self.failures: list[BaseException] = []
        self._process = process
        self._fresh = fresh
        self._most = most
        self._ending = threading.Event()
        works = [(self._write, layout) for layout in range(len(LAYOUTS))]
        works += [(self._read, layout) for layout in range(len(LAYOUTS))]
        self._threads = [
            threading.Thread(target=self._guarded, args=(work, layout, random.Random(f"{seed}/{index}")))
            for index, (work, layout) in enumerate(works)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a client hangs on a dead daemon"
        if self.failures:
            raise self.failures[0]

    def _guarded(self, work, layout: int, rng: random.Random) -> None:
        try:
            with client_of(self._process, LAYOUTS[layout]) as client:
                while not self._ending.is_set() and self._process.is_running:
                    work(client, layout, rng)
        except BaseException as failure:
            self.failures.append(failure)

    def _write(self, client, layout: int, rng: random.Random) -> None:
        batch = []
        for _ in range(rng.randrange(1, 4)):
            if self._fresh[layout] < self._most[layout] and rng.random() < 0.8:
                number = self._fresh[layout]
                self._fresh[layout] += 1
            else:
                number = rng.randrange(max(1, self._fresh[layout]))
            document = Document(layout, number)
            self.attempted.add(document)
            if document.put(client):
                batch.append(document)
        if client.flush(10, durable=True):
            self.durable.update(batch)

    def _read(self, client, layout: int, rng: random.Random) -> None:
        document = Document(layout, rng.randrange(max(1, self._fresh[layout])))
        if document.read(client):
            self.verified += 1


def read_all(process: DaemonProcess, documents: set[Document]) -> set[Document]:
    """Those of which every byte is there; whatever is there of the others is right."""
    whole = set()
    for layout, model in enumerate(LAYOUTS):
        with client_of(process, model) as client:
            for document in in_order(documents):
                if document.layout == layout and document.read(client):
                    whole.add(document)
            failed = {name: count for name, count in client.counters.items() if name.endswith("_failed") and count}
            assert not failed, f"the daemon did not answer: {failed}"
    return whole


def test_fifty_kills_lose_nothing_durable_and_never_give_wrong_bytes(tmp_path: Path) -> None:
    rng = random.Random(2026)
    durable: set[Document] = set()
    attempted: set[Document] = set()
    newest: set[Document] = set()  # acknowledged since the last start: all of them are verified after the next
    fresh = [0, 0]
    checked = verified = 0
    early = set(rng.sample(range(5, KILLS), KILLS_AT_START))
    with daemon(tmp_path, "64MiB", "128MiB") as process:
        for kill in range(KILLS):
            if kill in early:
                process.spawn()
                time.sleep(rng.uniform(0.0, 0.8))
                process.kill()
                continue
            process.start()
            sample = set(in_order(durable) if kill % 10 == 0 else rng.sample(in_order(durable), min(40, len(durable))))
            lost = (newest | sample) - read_all(process, newest | sample)
            assert not lost, f"before kill {kill}: acknowledged as durable and lost: {in_order(lost)[:5]}"
            checked += len(newest | sample)
            load = Load(process, kill, fresh, MOST_DOCUMENTS)
            time.sleep(rng.uniform(0.02, 0.6))
            process.kill()
            load.end()
            newest = load.durable - durable
            durable |= load.durable
            attempted |= load.attempted
            verified += load.verified
            if kill % 5 == 4:
                found = verify_folder(process.disk)
                assert not found.bad, f"kill {kill}: {found.bad[:3]}"
        facts = process.start()
        whole = read_all(process, attempted)
        assert durable <= whole, f"acknowledged as durable and lost: {in_order(durable - whole)[:5]}"
        assert objects_on_disk(facts) > len(durable)
    print(
        f"{KILLS} kills, {checked} durable documents checked, {verified} verified under load, {len(whole)} at the end"
    )
    assert len(durable) > 50 and verified > 50, "the load was too light to show anything"


def test_kills_while_evicting_never_give_wrong_bytes(tmp_path: Path) -> None:
    """Slots are recycled all the time here, so that a kill finds frames half overwritten and drops not yet recorded."""
    rng = random.Random(7)
    attempted: set[Document] = set()
    fresh, verified, whole = [0, 0], 0, set()
    with daemon(tmp_path, "8MiB", "24MiB") as process:
        for kill in range(10 * KILLS_WHILE_EVICTING):
            if kill >= KILLS_WHILE_EVICTING and demo_bytes(fresh[1]) > 24 << 20:
                break  # more kills only where a slow machine put too little between them
            process.start()
            whole = read_all(process, attempted)
            load = Load(process, kill, fresh, (10**6, 10**6))
            time.sleep(rng.uniform(0.4, 1.2))
            process.kill()
            load.end()
            attempted = set(in_order(attempted | load.attempted)[-200:])
            verified += load.verified
    assert demo_bytes(fresh[1]) > 24 << 20, "nothing had to be evicted"
    assert whole and verified > 10


def demo_bytes(documents: int) -> int:
    return sum(document.raw_bytes for document in (Document(1, number) for number in range(documents)))


def in_order(documents: set[Document]) -> list[Document]:
    return sorted(documents, key=lambda document: (document.number, document.layout))


def objects_on_disk(facts: dict[str, object]) -> int:
    tiers = facts["tiers"]
    assert isinstance(tiers, list)
    return sum(tier["objects"] for tier in tiers if tier["tier"] == "disk")
