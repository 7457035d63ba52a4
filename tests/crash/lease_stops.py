"""Worker processes that stop themselves in the worst moment, or fork in it; see `lease_worker.py`."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable

import numpy as np
from crash_tools import LAYOUTS, Document
from lease_clients import DEMO, attached, is_layer_right, is_right, say

from kvstore.client import shared, target

CANARY = 0xEE


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
    if how == "layers":
        layered = client.fetch(match, order="layers")
        first = layered.layer(0, 20.0)
        assert first is not None and is_layer_right(first, document, 0)
        stop()
        said["layers"] = layered.layer(1, 5.0) is not None or layered.finish(5.0)
        assert layered._source is not None
        layered._source._valid_until = float("inf")
        said["layers by stamps"] = layered.layer(1, 5.0) is not None or layered.finish(5.0)
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
