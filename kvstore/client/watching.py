"""Waits for what a lease's promotions bring into the daemon's memory, and for how long that pays.

One `Watch` serves one load. Asks with Locate, over a lane or gRPC; whoever copies the bytes does so between two of
its answers. Any one thread.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvstore.client.link import Link, Session
from kvstore.client.match import ClientMatch
from kvstore.client.patience import Patience, Progress, should_stop
from kvstore.core.errors import InvalidInput, StoreUnavailable
from kvstore.core.layout import ModelLayout
from kvstore.rpc.generated import kvstore_pb2 as pb

PARTS = 8  # of a load that are copied as they come; the last one is all that is left to copy when the disk is done
CALL_SECONDS = 1.0  # more than any Locate takes beyond its wait; a daemon that is silent for so long is away


class Abandoned(Exception):
    """What is here is the better choice than waiting for the rest."""


class Watch:
    """Begins when it is made: the load's clock starts."""

    def __init__(self, link: Link, layout: ModelLayout, patience: Patience) -> None:
        self.gave_up = False
        self._link, self._layout, self._patience = link, layout, patience
        self._began = self._news_at = link.now()
        self._forecast = patience.forecast
        self._here_bytes = 0
        self._hot = 0  # blocks that are in the daemon's memory, or were
        self._is_all_hot = False  # the states too

    def arrivals(
        self, session: Session, match: ClientMatch, first: int, end: int, required: int | None, deadline: float
    ) -> Iterator[int]:
        """Counts of blocks that are in the daemon's memory, growing by parts; ends when nothing more is to come.

        Raises Abandoned, and what a call raises; StoreUnavailable when the fetch's time is up, which for a worker that
        computes slowly is long before waiting stops to pay.
        """
        lease = match.lease
        assert lease is not None and lease.id is not None
        told, hot, is_first = first, first, True
        part = max((end - first) // PARTS, 1)
        while True:
            left = self._link.left(deadline)
            if left <= 0:
                raise StoreUnavailable("the fetch's time is up")
            wait = 0.0 if is_first else min(self._forecast.look_seconds, left)
            answer = self._locate(session, lease.id, lease.boot_epoch, hot, min(part, max(end - hot, 1)), wait)
            news = self._count(answer, hot)
            hot += news
            self._hot = hot
            has_state = required is None or any(state.group == required for state in answer.states)
            if is_first:
                self._begin(hot, end, has_state, required)
            else:
                self._note(news)
            is_first = False
            self._is_all_hot = hot >= end and has_state
            if self._is_all_hot or not answer.is_loading:
                break
            self.check(hot)
            if hot - told >= part:
                told = hot
                yield hot  # copied meanwhile; what the next answer tells came in since
        if hot > told:
            yield hot

    def check(self, blocks: int) -> None:
        """Raise Abandoned where waiting does not pay any more with so many blocks here."""
        now = self._link.now()
        here = self._patience.fallback.seconds(blocks * self._layout.block_tokens)
        progress = Progress(now - self._began, now - self._news_at, self._here_bytes, here)
        if should_stop(self._forecast, progress):
            self.gave_up = True
            raise Abandoned

    @property
    def is_useless(self) -> bool:
        """What is here saves no computing at all."""
        return self._patience.fallback.compute_from(self._hot * self._layout.block_tokens) == 0

    def last_moment(self, blocks: int) -> float | None:
        """Until when to wait for a stream that says nothing of its progress, with so many blocks here.

        None where nothing in it comes from disk: it takes what copying takes.
        """
        if self._is_all_hot:
            return None
        here = self._patience.fallback.seconds(blocks * self._layout.block_tokens)
        spent = self._began + self._forecast.cold_seconds - here + self._forecast.budget / 2
        return max(spent, self._link.now() + self._forecast.look_seconds)

    def is_over(self, blocks: int) -> bool:
        """A stream was cut off: whether because waiting did not pay any more."""
        moment = self.last_moment(blocks)
        if moment is not None and self._link.now() >= moment - self._forecast.look_seconds:
            self.gave_up = True
        return self.gave_up

    def streamed(self, blocks: int) -> None:
        """So many blocks are in the worker's memory: those behind what is in the daemon's come straight from disk."""
        if blocks > self._hot:
            self._note(blocks - self._hot)
            self._hot = blocks
            self.check(blocks)

    def _begin(self, hot: int, end: int, has_state: bool, required: int | None) -> None:
        """What was hot from the start is no progress of the disk's: only the rest is watched."""
        cold = (end - hot) * self._layout.rows.nbytes
        if required is not None and not has_state:
            cold += self._layout.groups[required].nbytes
        self._forecast = self._forecast._replace(load_bytes=cold)

    def _note(self, blocks: int) -> None:
        if blocks:
            self._here_bytes += blocks * self._layout.rows.nbytes
            self._news_at = self._link.now()

    def _locate(
        self, session: Session, lease: int, boot_epoch: int, first: int, blocks: int, wait: float
    ) -> pb.LocateResponse:
        request = pb.LocateRequest(
            namespace_id=session.namespace,
            boot_epoch=boot_epoch,
            lease=lease,
            first_block=first,
            min_blocks=blocks,
            wait_seconds=wait,
        )
        return self._link.call(self._link.calls.locate, request, self._link.deadline(wait + CALL_SECONDS))

    def _count(self, answer: pb.LocateResponse, first: int) -> int:
        """Blocks that an answer tells of."""
        rows = answer.rows
        if rows.objects and (rows.first_block != first or rows.objects > len(rows.records)):
            raise self._link.failure(InvalidInput("the daemon told of rows that were not asked for"))
        return rows.objects
