"""Ghost stores: what other policies and other admission would find of the same traffic, and which should be in charge.

Each ghost is the store's own planner (`rehearsal.py`) on a sample: whole conversations, by a hash of their session;
without session names by a hash of the first block that not everybody shares. Its room is the store's times the
sampling rate, and in full for the shared blocks before that one, because every conversation of the sample brings them.
The rate leaves some `SAMPLE_BLOCKS` blocks of room: a small store is followed whole, a large one by a hundredth.

The variant in charge has a ghost too, so that all are compared on the same requests from the same start. Differences
are taken request by request, weighted by prompt tokens, and fade with the requests that follow. A variant takes over
where it is better by more than `LEAST_GAIN` and by `SURE` standard errors, and no kind of request that matters loses
more than `MOST_CLASS_LOSS`. Where what is in charge falls below the plain variant, the first one, by
`FLOOR`, the plain one comes back at once.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict, deque
from collections.abc import Collection, Sequence
from typing import NamedTuple

from kvstore.core.keys import Chain, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.match import Hints, PlanKind
from kvstore.core.matching import Request
from kvstore.core.planner import Planner
from kvstore.core.policies import policy_named
from kvstore.core.popular import Popular
from kvstore.core.rehearsal import Rehearsal, snapshot_ends
from kvstore.core.reserve import ObjectSpec
from kvstore.core.settings import Settings
from kvstore.core.space import region_pages

SAMPLE_BLOCKS = (
    8192  # the curves need 4,000 for a mean error of a point (MEASURED section 7); two variants differ by less
)
HALF_LIFE_REQUESTS = 512  # sampled ones; differences of a point show after some hundred prompts
LEAST_REQUESTS = 128  # before anything is decided
LEAST_GAIN = 0.005  # of the asked tokens
SURE = 3.0  # standard errors: all variants are asked again every few requests, and chance may not win once
FLOOR = 0.002  # the promise is to stay within 0.2 points of the plain variant
# Traffic that changes its nature shows sooner in what was asked last. Over a day of three traces (bench/hit_rate.py
# --rows switching) the way back came 170 s earlier, and on each trace alone none came that should not.
RECENT_REQUESTS = 128  # half-life
RECENT_SURE = 1.5  # standard errors: looked at as often as the long memory, and more easily moved by chance
MOST_CLASS_LOSS = 0.05  # of a class's tokens ...
CLASS_SHARE = 0.05  # ... that has at least this share of what is asked
MAX_WAITING = 256  # events; what does not fit is not followed, and counted
MAX_WAITING_BLOCKS = 1 << 17  # 4 MiB of hashes
MAX_FOLLOWED = 8192  # chains of which a put may still come
KEEPS = (30.0, 60.0, 120.0, 240.0)  # seconds of admission to choose from: a step is a factor of two


class Variant(NamedTuple):
    """One way to run a store."""

    policy: str
    keep_seconds: float = 0.0

    def __str__(self) -> str:
        return self.policy + (f", keep {self.keep_seconds:g} s" if self.keep_seconds else "")


ADAPTIVE = "adaptive"  # instead of a policy's name: the best of the variants is in charge
# ARC keeps least what came last: whoever refuses what is new while that is young refuses nearly all (7.1 instead of 8.9
# points on the conversation trace at 4 GiB). So admission goes with LRU.
VARIANTS = (Variant("lru"), Variant("arc"), *(Variant("lru", seconds) for seconds in KEEPS))


def variants_for(policy: str, keep_seconds: float | None) -> tuple[Variant, ...]:
    """What may be in charge of a store, the plain variant first.

    `policy` is a name or "adaptive", `keep_seconds` None where admission may adapt. An adaptive policy comes with
    adaptive admission, if that is not fixed above 0; of the others only LRU's adapts. Raises ConfigError for a name
    that no policy has.
    """
    if policy == ADAPTIVE and not keep_seconds:
        return VARIANTS
    if policy == ADAPTIVE:
        fixed = keep_seconds or 0.0
        return tuple(dict.fromkeys(variant._replace(keep_seconds=fixed) for variant in VARIANTS))
    name = policy_named(policy).name
    if keep_seconds is None and name == "lru":
        return tuple(variant for variant in VARIANTS if variant.policy == name)
    return (Variant(name, keep_seconds or 0.0),)


class Opened(NamedTuple):
    """A namespace of the live store."""

    name: bytes
    root: bytes
    layout: ModelLayout


class Asked(NamedTuple):
    """A lookup of the sample."""

    name: bytes
    request: Request
    now: float


class Written(NamedTuple):
    """What was put behind a prompt of the sample: rows from block `first` on, and states at these token counts."""

    name: bytes
    chain: Chain
    first: int
    states_at: frozenset[int]
    hints: Hints
    now: float


class Chosen(NamedTuple):
    """An operator put this variant in charge."""

    variant: Variant


class Verdict(NamedTuple):
    """Who should be in charge instead, and why, for an operator to read."""

    variant: Variant
    why: str


class Lately:
    """By how much the plain variant is ahead of the one in charge, over the last requests only."""

    def __init__(self) -> None:
        self.asked = self.ahead = self.squares = 0.0  # tokens, tokens, squared tokens; all fade

    def add(self, asked: int, more: int) -> None:
        factor = 0.5 ** (1 / RECENT_REQUESTS)
        self.asked = self.asked * factor + asked
        self.ahead = self.ahead * factor + more
        self.squares = self.squares * factor * factor + more * more

    @property
    def is_surely_ahead(self) -> bool:
        return self.ahead > max(FLOOR * self.asked, RECENT_SURE * math.sqrt(self.squares))


class Ghost:
    """One variant's store, and how it fares against the one in charge."""

    def __init__(self, variant: Variant, settings: Settings) -> None:
        self.variant = variant
        self.rehearsal = Rehearsal(Planner(settings, policy_named(variant.policy)))
        self.resumed = 0.0  # tokens; this and the following fade
        self.squares = 0.0  # of what it resumed more than the one in charge
        self.gain = 0.0
        self.classes: dict[str, float] = {}  # resumed tokens by class

    def fade(self, factor: float) -> None:
        self.resumed *= factor
        self.gain *= factor
        self.squares *= factor * factor
        for name in self.classes:
            self.classes[name] *= factor


class Shadows:
    """What the live store tells costs little and is remembered; `work` follows it, in one thread, under no other lock.

    Ghosts, and who is in charge of them, change in that thread alone.
    """

    def __init__(
        self, settings: Settings, variants: Sequence[Variant], charge: Variant, sample_blocks: int = SAMPLE_BLOCKS
    ) -> None:
        """`settings` are the live store's. The first variant is the plain one."""
        if charge not in variants:
            variants = (*variants, charge)
        self.charge = charge
        self.plain = variants[0]
        self.rate = 1.0
        self.missed = 0  # events that did not fit
        self.requests = 0
        self._settings = settings
        self._sample_blocks = sample_blocks
        self._ghosts = {variant: Ghost(variant, _of_ghosts(settings, variant, 1.0)) for variant in variants}
        self._waiting: deque[Opened | Asked | Written | Chosen] = deque()
        self._blocks_in = self._blocks_out = 0  # of events: each is counted by one thread only
        self._followed: OrderedDict[tuple[bytes, bytes], None] = OrderedDict()  # the last blocks of prompts
        self._popular = Popular()
        self._layouts: dict[bytes, ModelLayout] = {}
        self._weight = 0.0  # faded requests
        self._asked = 0.0  # faded tokens
        self._lately = Lately()
        self._asked_by_class: dict[str, float] = {}

    # -- told by the live store, under its lock --------------------------------------------------
    def open(self, name: bytes, root: bytes, layout: ModelLayout) -> None:
        """The live store has this namespace."""
        if name not in self._layouts:
            self._layouts[name] = layout
            self._waiting.append(Opened(name, root, layout))

    def looked_up(self, name: bytes, request: Request, now: float) -> None:
        """A lookup was answered."""
        if request.hot_only:  # it asks again for what a load brought meanwhile
            return
        chain = request.chain
        if not chain.blocks or not self._is_sampled(request.hints.session, chain):
            return
        if self._is_full:
            self.missed += 1
            return
        self._follow(name, chain.hash_at(chain.blocks - 1))
        self._blocks_in += chain.blocks
        self._waiting.append(Asked(name, request, now))

    def written(self, name: bytes, chain: Chain, objects: Sequence[ObjectSpec], hints: Hints, now: float) -> None:
        """Objects were announced. Of interest is what stands behind a prompt of the sample."""
        if not chain.blocks:
            return
        skipped = self._prompt_end(name, chain)
        if skipped is None or self._is_full:
            return
        tokens = self._layouts[name].block_tokens
        # the prompt's last block may get its state only now: the end of output can lie in it
        states = frozenset(
            (chain.first_block + spec.block + 1) * tokens
            for spec in objects
            if spec.group and spec.block >= skipped - 1
        )
        self._follow(name, chain.hash_at(chain.blocks - 1))
        if states or skipped < chain.blocks:
            self._blocks_in += chain.blocks
            self._waiting.append(Written(name, chain, chain.first_block + skipped, states, hints, now))

    def chosen(self, variant: Variant) -> None:
        """This variant is in charge of the live store now."""
        self._waiting.append(Chosen(variant))

    # -- the work ------------------------------------------------------------------------------
    def work(self, most: int = MAX_WAITING) -> int:
        """Let the ghosts follow up to so many events; how many were left."""
        for _ in range(most):
            try:
                event = self._waiting.popleft()
            except IndexError:
                return 0
            if isinstance(event, Opened):
                self._open(event)
                continue
            if isinstance(event, Chosen):
                self.take_over(event.variant)
                continue
            self._blocks_out += (event.request.chain if isinstance(event, Asked) else event.chain).blocks
            if isinstance(event, Asked):
                self._ask(event)
            else:
                for ghost in self._ghosts.values():
                    ghost.rehearsal.put(event.name, event.chain, event.first, event.states_at, event.hints, event.now)
        return len(self._waiting)

    def judge(self, allowed: Collection[Variant] | None = None) -> Verdict | None:
        """Who of these (None: of all) should take over. Nothing changes until `take_over` says so."""
        if self._weight < min(LEAST_REQUESTS, HALF_LIFE_REQUESTS) or not self._asked:
            return None
        plain = self._ghosts[self.plain]
        if allowed is None:
            allowed = self._ghosts.keys()
        lost = plain.gain / self._asked
        may_return = plain.variant != self.charge and plain.variant in allowed
        if may_return and lost > FLOOR and plain.gain > math.sqrt(plain.squares):
            return Verdict(self.plain, f"{self.charge} fell {_points(lost)} below {self.plain}")
        if may_return and self._lately.is_surely_ahead:
            lost = self._lately.ahead / self._lately.asked
            return Verdict(self.plain, f"{self.charge} fell {_points(lost)} below {self.plain} lately")
        best: Ghost | None = None
        for ghost in self._ghosts.values():
            is_better = ghost.gain > max(LEAST_GAIN * self._asked, SURE * math.sqrt(ghost.squares))
            if ghost.variant not in allowed or not is_better or self._class_that_loses(ghost) is not None:
                continue
            if best is None or ghost.gain > best.gain:
                best = ghost
        if best is None:
            return None
        return Verdict(
            best.variant,
            f"{best.variant} resumes {_points(best.gain / self._asked)} more than {self.charge}"
            f" ({best.gain / math.sqrt(best.squares):.1f} standard errors, {self.requests} prompts followed)",
        )

    def steer(self, planner: Planner, allowed: Collection[Variant] | None = None) -> Verdict | None:
        """Let the best variant run this planner, where it is surely better than the one in charge. Returns it."""
        verdict = self.judge(allowed)
        if verdict is not None:
            planner.set_keep_seconds(verdict.variant.keep_seconds)
            planner.set_policy(policy_named(verdict.variant.policy))
            self.take_over(verdict.variant)
        return verdict

    def take_over(self, variant: Variant) -> None:
        """This variant is in charge from now on; differences are counted against it anew. For the thread of `work`."""
        if variant not in self._ghosts:
            # a new dictionary: whoever asks for the scores may be reading the old one
            self._ghosts = {**self._ghosts, variant: self._newcomer(variant)}
        old = self._ghosts[variant].gain
        self.charge = variant
        self._lately = Lately()
        for ghost in self._ghosts.values():
            ghost.gain -= old
            ghost.squares = max(ghost.squares, self._ghosts[variant].squares)

    def ghost(self, variant: Variant) -> Ghost:
        """One of the stores that are followed."""
        return self._ghosts[variant]

    def scores(self) -> dict[Variant, float]:
        """Share of the lately asked tokens that each would have resumed."""
        return {variant: ghost.resumed / max(self._asked, 1.0) for variant, ghost in self._ghosts.items()}

    # -- private -------------------------------------------------------------------------------
    @property
    def _is_full(self) -> bool:
        return len(self._waiting) >= MAX_WAITING or self._blocks_in - self._blocks_out >= MAX_WAITING_BLOCKS

    def _open(self, event: Opened) -> None:
        for ghost in self._ghosts.values():
            ghost.rehearsal.planner.add_namespace(event.name, event.root, event.layout)
        blocks = self._settings.host_bytes / min(layout.rows.nbytes for layout in list(self._layouts.values()))
        self.rate = min(1.0, self._sample_blocks / max(blocks, 1.0))
        self._resize()

    def _ask(self, event: Asked) -> None:
        request, factor = event.request, 0.5 ** (1 / HALF_LIFE_REQUESTS)
        self.requests += 1
        self._weight = self._weight * factor + 1
        self._asked = self._asked * factor + request.prompt_tokens
        name = _class_of(request.hints)
        for known in self._asked_by_class:
            self._asked_by_class[known] *= factor
        self._asked_by_class[name] = self._asked_by_class.get(name, 0.0) + request.prompt_tokens
        resumed = {variant: _follow(ghost.rehearsal, event) for variant, ghost in self._ghosts.items()}
        charge = resumed[self.charge]
        self._lately.add(request.prompt_tokens, resumed[self.plain] - charge)
        for variant, ghost in self._ghosts.items():
            ghost.fade(factor)
            more = resumed[variant] - charge
            ghost.resumed += resumed[variant]
            ghost.gain += more
            ghost.squares += more * more
            ghost.classes[name] = ghost.classes.get(name, 0.0) + resumed[variant]
        if self.rate < 1.0 and self.requests % 64 == 0:
            self._resize()

    def _newcomer(self, variant: Variant) -> Ghost:
        """A store that nobody followed until now: it begins empty, and its score with it."""
        ghost = Ghost(variant, _of_ghosts(self._settings, variant, self.rate))
        for name, namespace in self._ghosts[self.charge].rehearsal.planner.namespaces.items():
            ghost.rehearsal.planner.add_namespace(name, namespace.root.prefix, namespace.layout)
        return ghost

    def _class_that_loses(self, ghost: Ghost) -> str | None:
        charge = self._ghosts[self.charge]
        for name, asked in self._asked_by_class.items():
            if asked < CLASS_SHARE * self._asked:
                continue
            if charge.classes.get(name, 0.0) - ghost.classes.get(name, 0.0) > MOST_CLASS_LOSS * asked:
                return name
        return None

    def _is_sampled(self, session: str, chain: Chain) -> bool:
        if self.rate >= 1.0:
            return True
        shared = self._popular.shared(chain)
        own = session.encode() if session else chain.hash_at(min(shared, chain.blocks - 1))
        return int.from_bytes(hashlib.blake2b(own, digest_size=8).digest(), "little") < self.rate * 2**64

    def _follow(self, name: bytes, prefix: bytes) -> None:
        self._followed[name, prefix] = None
        if len(self._followed) > MAX_FOLLOWED:
            self._followed.popitem(last=False)

    def _prompt_end(self, name: bytes, chain: Chain) -> int | None:
        """How many of the chain's blocks belong to a followed prompt; None where it has to do with none."""
        for index in range(chain.blocks - 1, -1, -1):
            if (name, chain.hash_at(index)) in self._followed:
                return index + 1
        return 0 if (name, chain.parent) in self._followed else None

    def _resize(self) -> None:
        """Room for the sample: the store's share, and the blocks that all conversations bring."""
        largest = max((layout.rows.nbytes for layout in list(self._layouts.values())), default=0)
        shared = self._popular.blocks * largest
        for ghost in self._ghosts.values():
            for tier, nbytes in ((Tier.HOST, self._settings.host_bytes), (Tier.DISK, self._settings.disk_bytes)):
                space = ghost.rehearsal.planner.spaces[tier]
                wanted = int(self.rate * nbytes + (1 - self.rate) * min(shared, nbytes)) if nbytes else 0
                space.region_pages = max(wanted, space.used_pages)


def _of_ghosts(settings: Settings, variant: Variant, rate: float) -> Settings:
    return Settings(
        host_bytes=int(settings.host_bytes * rate),
        disk_bytes=int(settings.disk_bytes * rate),
        placement=settings.placement,
        lease_seconds=settings.lease_seconds,
        lives=settings.lives,
        keep_seconds=variant.keep_seconds,
        disk_admission=settings.disk_admission,
        disk_write_bytes_per_day=math.ceil(settings.disk_write_bytes_per_day * rate),
        ideal_space=True,
        as_region_pages=0 if settings.ideal_space else region_pages(settings.host_bytes),
    )


def _follow(rehearsal: Rehearsal, event: Asked) -> int:
    """One request through a ghost; tokens that it need not compute."""
    name, request, now = event.name, event.request, event.now
    chain, tokens = request.chain, rehearsal.planner.namespaces[name].layout.block_tokens
    match = rehearsal.lookup(name, request, now)
    first = max(match.plan.tokens // tokens, chain.first_block)
    end = (chain.first_block + chain.blocks) * tokens
    rehearsal.put(name, chain, first, snapshot_ends(match.snapshots, match.plan.tokens, end), request.hints, now)
    if match.lease is not None:
        rehearsal.planner.release(match.lease)
    # a replay computes its window anew: only what is in front of it was saved
    saved = match.plan.compute_from if match.plan.kind is PlanKind.REPLAY else match.plan.tokens
    return min(saved, request.prompt_tokens)


def _class_of(hints: Hints) -> str:
    return hints.kind or ("" if hints.mode is None else hints.mode.value)


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"
