"""What a worker holds: the answer to a lookup, and the blocks that were fetched for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import NamedTuple

from kvstore.client.buffers import Bytes
from kvstore.client.fetching import Load
from kvstore.client.hashing import Extras, HashedTokens, Tokens
from kvstore.client.located import Located
from kvstore.client.views import Views
from kvstore.core.errors import InvalidInput
from kvstore.core.keys import Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.lineage import ROOT_LINEAGE
from kvstore.core.match import COLD_PLAN, Hints, Match, MissReason, Plan, PlanKind, ResumePoint, Snapshots


class Lease:
    """The promise behind a match. Releasing is queued, and done once however often it is asked for."""

    def __init__(self, lease: int | None, boot_epoch: int, release: Callable[[int, int], None]) -> None:
        self.id, self.boot_epoch = lease, boot_epoch
        self._release: Callable[[int, int], None] | None = release

    def release(self) -> None:
        release, self._release = self._release, None
        if self.id is not None and release is not None:
            release(self.id, self.boot_epoch)


class Asked(NamedTuple):
    """What the worker asked, kept so that a fetch that finds objects gone can ask again."""

    tokens: Tokens
    hints: Hints
    extras: Extras
    hot_only: bool = False  # only what is in the store's memory counts
    by_layers: bool = False  # cold rows are wanted layer by layer


class ClientMatch:
    """From where this prompt can go on, and what to snapshot. A context manager: leaving it releases the lease.

    A store that is away gives an empty match: `plan.kind` is COLD and nothing is leased.
    """

    def __init__(
        self,
        asked: Asked,
        found: Match,
        hashed: HashedTokens | None,
        lease: Lease | None,
        located: Located | None = None,
    ) -> None:
        self.asked, self.found, self.hashed, self.lease = asked, found, hashed, lease
        self.located = located  # where in shared memory it lies; None where it has to be streamed
        self.plan: Plan = found.plan
        self.abandoned: Load | None = None  # what came in of a load that did not pay any more, until now
        self.look_at = 0.0  # when to look again whether the rest is there, on the link's clock

    @property
    def tokens(self) -> Tokens:
        """The prompt, int32, read-only."""
        return self.asked.tokens

    @property
    def rows_tokens(self) -> int:
        return self.found.rows_tokens

    @property
    def resume_points(self) -> tuple[ResumePoint, ...]:
        return self.found.resume_points

    @property
    def replay(self) -> Plan | None:
        return self.found.replay

    @property
    def snapshots(self) -> Snapshots:
        return self.found.snapshots

    @property
    def canonical(self) -> bool:
        return self.found.canonical

    @property
    def reason(self) -> MissReason:
        return self.found.reason

    @property
    def lineage(self) -> bytes | None:
        """Lineage of the rows under `plan.tokens`; None for a plan other than the one that the store chose."""
        return self.found.lineage if self.plan.tokens == self.found.plan.tokens else None

    def with_plan(self, plan: Plan | ResumePoint) -> ClientMatch:
        """The same match, to be carried out by another of its plans: `replay` or one of `resume_points`.

        Only the store's own plan is leased whole; what another one needs may have gone when it is fetched.
        """
        if isinstance(plan, ResumePoint):
            if plan not in self.resume_points:
                raise InvalidInput(f"{plan.tokens} tokens are no resume point of this match")
            plan = Plan(
                PlanKind.RESUME, plan.tokens, plan.tokens, plan.load_bytes, plan.tier, plan.load_seconds,
                plan.recompute_seconds,
            )  # fmt: skip
        elif plan not in (self.found.plan, self.replay, COLD_PLAN):
            raise InvalidInput(f"{plan} is no plan of this match: pass its `plan`, `replay` or a resume point")
        other = ClientMatch(self.asked, self.found, self.hashed, self.lease, self.located)
        other.plan = plan
        return other

    def release(self) -> None:
        if self.lease is not None:
            self.lease.release()

    def __enter__(self) -> ClientMatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Blocks:
    """Fetched bytes, whole and verified. A context manager; copied arrays stay valid as long as they are referenced.

    `plan` is what these bytes allow: the match's plan, or a shorter one where objects were gone or late. Views
    (`fetch(views=True)`) are the daemon's memory: ask `is_valid` after the last use and before anything that was made
    from them is believed. Leaving the context lets go of them.
    """

    def __init__(
        self,
        plan: Plan,
        rows: Mapping[str, Bytes],
        state: Mapping[str, Bytes] | None,
        optional: Mapping[str, Mapping[str, Bytes]],
        tier: Tier | None,
        lineage: bytes,
        first_block: int = 0,
        views: Views | None = None,
    ) -> None:
        self.plan = plan
        # component -> (blocks, layers having it, section bytes), blocks from `first_block` on; of views a sequence of
        # read-only (layers having it, section bytes)
        self.rows = rows
        self.state = state  # component -> (layers having it, section bytes) at plan.tokens; None without or in a replay
        self.optional = optional  # group name -> component -> like a state; absent where the store had none
        self.tier = tier  # the coldest that the bytes lay on at the lookup or after; None when there are none
        # of the rows under plan.tokens, computed from the bytes themselves; of a streamed share the store's word for it
        self.lineage = lineage
        self.first_block = first_block  # above 0 in a share
        self._views = views

    @property
    def is_valid(self) -> bool:
        """Whether what was read so far is what was stored. Always so for copies, which were checked when made."""
        return self._views is None or self._views.are_valid

    def runs(self) -> Iterator[tuple[int, Mapping[str, Bytes]]]:
        """The rows as few arrays: number of the first block, component -> (blocks, layers having it, section bytes)."""
        if self._views is not None:
            yield from self._views.runs()
        elif any(len(array) for array in self.rows.values()):
            yield self.first_block, self.rows

    def __enter__(self) -> Blocks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rows, self.state, self.optional = {}, None, {}  # the buffers go back when no view is left
        self._views = None


def empty_match(asked: Asked, layout: ModelLayout) -> ClientMatch:
    """What a store that is away answers."""
    short = len(asked.tokens) <= layout.resume_alignment
    reason = MissReason.SHORT_PROMPT if short else MissReason.NEVER_SEEN
    found = Match(0, (), None, COLD_PLAN, Snapshots(), layout.canonical, reason, None, ROOT_LINEAGE)
    return ClientMatch(asked, found, None, None)
