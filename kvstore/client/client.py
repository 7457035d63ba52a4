"""The worker's side of the store: look up, fetch, put, and never be held up.

Fail-open: whatever the store does, a worker sees at worst a shorter match within its deadline. Only the caller's own
bad arguments raise, as InvalidInput. What went wrong is in `counters`, by name.

A client belongs to the process that made it: what a forked child has of it is closed (`forks.py`).

Threads: calls run on the caller's thread and may come from several; puts, releases and probing run on one thread of
the client's own (`writer.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Literal, NamedTuple, TypeVar, overload

from numpy.typing import ArrayLike

from kvstore.client.arguments import (
    NO_HINTS,
    check_text,
    check_unicode,
    checked_extras,
    checked_flops,
    checked_hints,
    checked_seconds,
    int32_tokens,
)
from kvstore.client.buffers import BufferPool, Bytes
from kvstore.client.counters import Counters
from kvstore.client.fetch import Fetcher
from kvstore.client.fetch_layers import LayerFetcher
from kvstore.client.handoff import HandoffCalls, checked_payload
from kvstore.client.hashing import Extras, HashedTokens, Hasher, Tokens
from kvstore.client.layers import LayeredBlocks
from kvstore.client.lineages import Lineages, Parent
from kvstore.client.link import Link, Session
from kvstore.client.lookups import Lookups
from kvstore.client.match import Asked, Blocks, ClientMatch, empty_match
from kvstore.client.packing import Packing
from kvstore.client.putting import States, checked_arrays, packed_job
from kvstore.client.settings import Bounds, Timeouts
from kvstore.client.target import Into
from kvstore.client.wish import WHOLE, Order, Wish, checked_order, checked_wish
from kvstore.client.writer import Writer
from kvstore.core.checksum import Buffer
from kvstore.core.errors import HelloAgain, InvalidInput, StoreUnavailable
from kvstore.core.layout import ModelLayout
from kvstore.core.match import Hints, SessionEvent
from kvstore.rpc.convert import chain_to_wire
from kvstore.rpc.enums import SESSION_EVENT
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.limits import MAX_HANDOFF_SECONDS, MAX_PIN_SECONDS, MAX_REASON

LONGEST_WAIT_SECONDS = 86_400.0  # more than anybody means, and less than the clock can count

Answer = TypeVar("Answer")


class Pinned(NamedTuple):
    """What an accepted pin holds."""

    id: int
    tokens: int
    nbytes: int


class Client:
    """One model's cache in one store. Made by `connect` (connect.py)."""

    def __init__(
        self,
        address: str,
        layout: ModelLayout,
        *,
        worker_flops: float | None,
        can_replay: bool,
        existing_only: bool,
        share_memory: bool,
        timeouts: Timeouts,
        bounds: Bounds,
    ) -> None:
        self.layout = layout
        self._timeouts = timeouts
        self._counters = Counters()
        self._packings = tuple(Packing(group) for group in layout.groups)
        self._pool = BufferPool(bounds.pool_bytes)
        self._hasher = Hasher(layout.block_tokens, bounds.memo_bytes, self._counters)
        self._lineages = Lineages(bounds.lineages)
        self._link = Link(
            address, layout, timeouts, self._counters, existing_only=existing_only, share_memory=share_memory
        )
        self._writer = Writer(self._link, self._lineages, bounds, timeouts)
        self._lookups = Lookups(
            self._link, self._hasher, self._lineages, layout,
            can_replay=can_replay, worker_flops=worker_flops, release=self._writer.release,
        )  # fmt: skip
        self._fetcher = Fetcher(
            self._link, self._lookups, self._lineages, layout, self._packings, self._pool, timeouts,
            can_replay=can_replay,
        )  # fmt: skip
        self._handoffs = HandoffCalls(self._link, self._hasher, self._pool, timeouts, layout.block_tokens)
        self._layer_fetcher = LayerFetcher(self._fetcher, layout, self._pool)
        self._link.connect()
        if existing_only and self._link.refused is not None:
            self._link.close()
            raise self._link.refused
        self._writer.start()

    @property
    def is_connected(self) -> bool:
        """Whether calls are sent at present; while False they are answered here, with nothing."""
        return self._link.is_connected

    @property
    def is_attached(self) -> bool:
        """Whether calls and bytes go through memory shared with a daemon on this host; else they go over gRPC."""
        return self._link.attaching.is_attached

    @property
    def has_staging(self) -> bool:
        """Whether puts are packed where a daemon on this host copies them from; else they are streamed to it."""
        return self._writer.has_staging

    @property
    def counters(self) -> dict[str, int]:
        """What happened since the client was made, by name."""
        return self._counters.snapshot()

    @property
    def worker_flops(self) -> float | None:
        """This worker's prefill speed in the cost model's FLOP a second; what lookups tell the store from now on."""
        return self._lookups.worker_flops

    @worker_flops.setter
    def worker_flops(self, flops: float | None) -> None:
        self._lookups.worker_flops = checked_flops(flops)

    def lookup(
        self,
        tokens: ArrayLike,
        *,
        hints: Hints = NO_HINTS,
        extras: Extras | None = None,
        order: Order = "blocks",
    ) -> ClientMatch:
        """From where a prompt of these token ids (position 0 on) can go on. Within `lookup_seconds`.

        `order="layers"`: what is cold is to be loaded layer by layer, for `fetch(order="layers", can_abandon=True)`.
        """
        by_layers = checked_order(order)
        asked = Asked(int32_tokens(tokens), checked_hints(hints), checked_extras(extras), by_layers=by_layers)
        self._counters.add("lookups")
        if not len(asked.tokens):
            return empty_match(asked, self.layout)
        try:
            return self._lookups.find(asked, self._link.deadline(self._timeouts.lookup_seconds))
        except StoreUnavailable:
            self._counters.add("lookups_failed")
            return empty_match(asked, self.layout)

    @overload
    def fetch(
        self,
        match: ClientMatch,
        into: Into | None = None,
        *,
        share: tuple[int, int] = WHOLE,
        verify: bool = False,
        views: bool = False,
    ) -> Blocks: ...
    @overload
    def fetch(self, match: ClientMatch, *, order: Literal["layers"], can_abandon: bool = False) -> LayeredBlocks: ...
    def fetch(
        self,
        match: ClientMatch,
        into: Into | None = None,
        *,
        share: tuple[int, int] = WHOLE,
        verify: bool = False,
        views: bool = False,
        order: Order = "blocks",
        can_abandon: bool = False,
    ) -> Blocks:
        """The bytes of a match within `fetch_seconds`; see `Blocks.plan` for how far they reach.

        `into` takes the rows: component -> writable uint8 array of the shape that `Blocks.rows` has, or one array
        (blocks, object bytes) for packed objects. What it holds behind the rows of `Blocks.plan` is undefined.
        `share=(rank, ranks)`: this rank's part of the rows only; the last one gets the state. Ranks whose plans
        differ agree on the shortest (`match.with_plan`). `verify`: checksums of the copies as well, which a stream
        always has. `views`: read-only arrays in the daemon's memory instead of copies (see `Blocks.is_valid`), where
        there are any. `order="layers"`: rows come layer by layer (`LayeredBlocks.layer`), whole copies only unless
        this worker `can_abandon` its step; see layers.py.
        """
        wish = checked_wish(into, share, verify=verify, views=views)
        by_layers = checked_order(order)
        if (by_layers and wish != Wish()) or (can_abandon and not by_layers):
            raise InvalidInput('by layers all rows are copied: pass order="layers" with can_abandon and nothing else')
        self._counters.add("fetches")
        if by_layers:
            deadline = self._link.deadline(self._timeouts.fetch_seconds)
            return self._layer_fetcher.fetch(match, deadline, can_abandon=can_abandon)
        return self._fetcher.fetch(match, wish)

    def catch_up(self, match: ClientMatch, computed_tokens: int) -> Blocks | None:
        """For a worker that computes after an abandoned fetch: a deeper point that has come in meanwhile.

        A fetch is abandoned, counted as `fetch_abandoned`, when computing from what is here is predicted to be
        quicker; the store goes on reading. Ask between two steps of the prefill, with how many tokens are computed:
        None where nothing is in the store's memory that is quicker to load than to compute (and at once, mostly:
        it looks at most every few milliseconds). Needs the match's lease: ask before releasing it.
        """
        return self._fetcher.catch_up(match, computed_tokens)

    def put(
        self,
        tokens: ArrayLike,
        *,
        first_block: int,
        rows: Mapping[str, Bytes],
        states: States | None = None,
        optional: Mapping[str, States] | None = None,
        extras: Extras | None = None,
        hints: Hints = NO_HINTS,
        onto: Blocks | None = None,
    ) -> bool:
        """Hand over rows of blocks from `first_block` on, and states at boundaries among them. Copies, then returns.

        `tokens` start at position 0 and cover the blocks. `rows` maps each component to (blocks, layers having it,
        section bytes), `states` each boundary in tokens to component -> (layers having it, section bytes), all uint8;
        `optional` does so by name of the optional group. `onto` names the fetched blocks that these rows were computed
        on, where they begin at its end; without it the client goes by what it loaded and put itself.

        False where it was not taken, counted as `puts_shed` (queue full), `puts_no_memory`, `puts_unconnected` or
        `puts_unknown_parent` (what lies below `first_block` is not known for certain). The last is also counted where a
        put that was still queued turns out to leave no certain lineage for one that was taken on top of it.
        """
        own = int32_tokens(tokens)
        own_hints, own_extras = checked_hints(hints), checked_extras(extras)
        arrays = checked_arrays(self.layout, self._packings, len(own), first_block, rows, states or {}, optional or {})
        try:
            session = self._link.session
        except StoreUnavailable:
            self._counters.add("puts_unconnected")
            return False
        if not self._writer.has_room(arrays.nbytes(self._packings)):
            self._counters.add("puts_shed")
            return False
        end = (arrays.first_block + arrays.blocks) * self.layout.block_tokens
        hashed = self._hasher.hashed(session.root, own[:end], own_extras)
        lineage = self._lineage_under(hashed, arrays.first_block, onto)
        if lineage is Parent.UNKNOWN:
            self._counters.add("puts_unknown_parent")
            return False
        nbytes = arrays.room_bytes(self._packings)
        extent = self._writer.stage(nbytes)
        try:
            buffer = self._pool.take(nbytes) if extent is None else extent.bytes
        except OSError:  # no memory to map
            self._counters.add("puts_no_memory")
            return False
        own_lineage = None if isinstance(lineage, Parent) else lineage
        is_taken = False
        try:
            is_taken = self._writer.offer(
                packed_job(arrays, self._packings, hashed, own_lineage, own_hints, buffer, extent)
            )
        finally:
            if extent is not None and not is_taken:
                extent.give_back()
        if not is_taken:
            self._counters.add("puts_shed")
        return is_taken

    def flush(self, timeout: float, durable: bool = False) -> bool:
        """Wait until all that was put before is settled, for at most `timeout` seconds. True if the store answered for
        each put since the last flush and, with `durable`, every object of them is synced to disk."""
        return self._writer.flush(checked_seconds(timeout, "timeout", LONGEST_WAIT_SECONDS), durable)

    def put_handoff(
        self,
        tokens: ArrayLike,
        payload: Sequence[Buffer],
        ttl_seconds: float = 10.0,
        extras: Extras | None = None,
    ) -> bool:
        """Leave the exact cache that stands at the end of these tokens (from position 0 on, any number of them) for one
        other worker. Returns when the store has it, within `handoff_seconds`: whether it has.

        `payload` is the engine's: buffers, sent one after another. Of two for the same tokens the latest counts.
        """
        own = int32_tokens(tokens)
        if not len(own):
            raise InvalidInput("a handoff of no tokens: pass those that the cache holds")
        pieces, ttl_seconds = checked_payload(payload), checked_seconds(ttl_seconds, "ttl_seconds", MAX_HANDOFF_SECONDS)
        return self._handoffs.put(own, pieces, ttl_seconds, checked_extras(extras))

    def take_handoff(self, tokens: ArrayLike, extras: Extras | None = None) -> memoryview | None:
        """What was left at the end of exactly these tokens; it is nobody else's from now on. None: there is nothing.

        The bytes are those that were put, checked; they stay valid as long as they are referenced.
        """
        own, own_extras = int32_tokens(tokens), checked_extras(extras)
        return self._handoffs.take(own, own_extras) if len(own) else None

    def pin(self, tokens: ArrayLike, ttl_seconds: float) -> Pinned | None:
        """Keep what is stored of this prompt for so long; None where nothing was pinned."""
        own, ttl_seconds = int32_tokens(tokens), checked_seconds(ttl_seconds, "ttl_seconds", MAX_PIN_SECONDS)

        def ask(session: Session, deadline: float) -> Pinned | None:
            chain = chain_to_wire(self._chain(session, own).chain(0, self._cut(session, own)))
            request = pb.PinRequest(namespace_id=session.namespace, chain=chain, ttl_seconds=ttl_seconds)
            answer = self._link.call(self._link.calls.pin, request, deadline)
            return Pinned(answer.pin, answer.pinned_tokens, answer.pinned_bytes) if answer.pin else None

        return self._control(ask, None)

    def unpin(self, pin: Pinned) -> bool:
        """Whether there was such a pin."""
        if not isinstance(pin, Pinned):
            raise InvalidInput(f"{pin!r} is no pin: pass what `pin` gave")

        def ask(_: Session, deadline: float) -> bool:
            return self._link.call(self._link.calls.unpin, pb.UnpinRequest(pin=pin.id), deadline).unpinned

        return self._control(ask, False)

    def session(self, session: str, event: SessionEvent, expected_gap_seconds: float | None = None) -> bool:
        """Tell the store what an agent session does. Whether it heard."""
        check_text(session, "session")
        if not isinstance(event, SessionEvent):
            raise InvalidInput(f"{event!r} is no SessionEvent: pass one of kvstore.SessionEvent")
        if expected_gap_seconds is not None:
            checked_seconds(expected_gap_seconds, "expected_gap_seconds")

        def ask(known: Session, deadline: float) -> bool:
            request = pb.SessionRequest(
                namespace_id=known.namespace,
                session=session,
                event=SESSION_EVENT.to_wire(event),
                expected_gap_seconds=expected_gap_seconds,
            )
            self._link.call(self._link.calls.session, request, deadline)
            return True

        return self._control(ask, False)

    def prefetch(self, tokens: ArrayLike) -> int:
        """Bring what is cold of this prompt into host memory; the number of bytes that will be moved."""
        own = int32_tokens(tokens)

        def ask(session: Session, deadline: float) -> int:
            request = pb.PrefetchRequest(
                namespace_id=session.namespace,
                worker_id=self._link.worker_id,
                chain=chain_to_wire(self._chain(session, own).chain(0, self._cut(session, own))),
                prompt_tokens=len(own),
            )
            return self._link.call(self._link.calls.prefetch, request, deadline).bytes

        return self._control(ask, 0) if len(own) else 0

    def report(self, match: ClientMatch, *, block: int, group: int, reason: str) -> bool:
        """Say that a fetched object was wrong. Whether the store dropped it."""
        hashed = match.hashed
        if hashed is None:
            return False
        are_numbers = isinstance(block, int) and isinstance(group, int)
        if not (are_numbers and 0 <= block < hashed.blocks and 0 <= group < len(self.layout.groups)):
            raise InvalidInput(f"block {block} of group {group} is not in this match of {hashed.blocks} blocks")
        check_unicode(reason, "reason")
        prefix = hashed.position(block + 1)

        def ask(session: Session, deadline: float) -> bool:
            request = pb.ReportRequest(
                namespace_id=session.namespace, prefix=prefix, group=group, reason=reason[:MAX_REASON]
            )
            return self._link.call(self._link.calls.report, request, deadline).dropped

        return self._control(ask, False)

    def close(self) -> None:
        """Upload what is queued, for at most `close_seconds`, and let go. May be called twice."""
        self._writer.close(self._timeouts.close_seconds)
        self._fetcher.shared.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lineage_under(self, hashed: HashedTokens, first_block: int, onto: Blocks | None) -> bytes | Parent:
        if onto is not None and onto.plan.tokens == first_block * self.layout.block_tokens:
            return onto.lineage
        return self._lineages.under(hashed.position(first_block), hashed.root)

    def _chain(self, session: Session, tokens: Tokens) -> HashedTokens:
        return self._hasher.hashed(session.root, tokens, {})

    def _cut(self, session: Session, tokens: Tokens) -> int:
        return min(session.batch_blocks, len(tokens) // self.layout.block_tokens)

    def _control(self, ask: Callable[[Session, float], Answer], otherwise: Answer) -> Answer:
        """One small call on the caller's thread; `otherwise` where the store is away."""
        deadline = self._link.deadline(self._timeouts.control_seconds)
        try:
            return self._link.with_session(lambda session: ask(session, deadline), deadline)
        except (StoreUnavailable, HelloAgain):
            self._counters.add("control_calls_failed")
            return otherwise
