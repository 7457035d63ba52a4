"""Large copies, shared with further threads: one core moves less than memory can give.

Measured on two cores: 64 MB in 4.5 ms instead of 5.7; machines with more memory channels gain more. The thread that
asked takes parts as the others do, so a helper that gets no core costs nothing: what it has not begun is not awaited.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

from kvstore.client.forks import tell_of_forks

SHARED_BYTES = 8 << 20  # below, waking a thread costs more than it copies
PART_BYTES = 4 << 20  # taken by a thread at a time: some 0.4 ms
MAX_HELPERS = 3  # four cores saturate the memory of most sockets

Part = TypeVar("Part")
Result = TypeVar("Result")


class Copiers:
    """Helper threads of one client, started when first needed. Any thread."""

    def __init__(self) -> None:
        self._helpers = min(MAX_HELPERS, len(os.sched_getaffinity(0)) - 1)
        self._lock = Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._is_closed = False
        tell_of_forks(self)

    def each(self, work: Callable[[Part], Result], parts: Sequence[Part], nbytes: int) -> list[Result]:
        """`work` of each part, in order; `nbytes` is what they copy together. Raises what `work` raises.

        Nothing is being copied any more when it returns or raises.
        """
        helpers = min(self._helpers, len(parts) - 1) if nbytes >= SHARED_BYTES else 0
        pool = self._threads() if helpers > 0 else None
        if pool is None:
            return [work(part) for part in parts]
        results: dict[int, Result] = {}
        numbers = itertools.count()  # next() of it is one step of the interpreter: no two threads get the same

        def take() -> None:
            while (number := next(numbers)) < len(parts):
                results[number] = work(parts[number])

        shared = [pool.submit(take) for _ in range(helpers)]
        try:
            take()
        finally:
            begun = [future for future in shared if not future.cancel()]
            for future in begun:
                future.exception()  # waits
        for future in begun:
            future.result()
        return [results[number] for number in range(len(parts))]

    def close(self) -> None:
        """Later copies are made by those who ask."""
        with self._lock:
            self._is_closed = True
            if self._pool is not None:
                self._pool.shutdown(wait=False)

    def forked(self) -> None:
        self._lock, self._pool, self._is_closed = Lock(), None, True  # its threads are the parent's

    def _threads(self) -> ThreadPoolExecutor | None:
        with self._lock:
            if self._pool is None and not self._is_closed:
                self._pool = ThreadPoolExecutor(self._helpers, thread_name_prefix="kvstore-copy")
            return None if self._is_closed else self._pool
