"""An explanation in plain words: what `kvstore explain` prints. Reads the wire's answer, knows no daemon."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from kvstore.core.ghosts import Departure
from kvstore.core.keys import Tier
from kvstore.core.match import MissReason
from kvstore.core.sizes import format_size
from kvstore.rpc.enums import MISS_REASON, TIER
from kvstore.rpc.explanations import DEPARTURE, OBJECT_CLASS
from kvstore.rpc.generated import admin_pb2 as pb

PAGE_BYTES = 4096


def told(answer: pb.ExplainResponse) -> Iterator[str]:
    """Lines."""
    if not answer.lookups:
        yield "no lookup since the daemon's start"
    for lookup in answer.lookups:
        yield from _lookup(lookup, answer)
        yield ""
    if answer.victims:
        yield f"next to be evicted, by {answer.policy}:"
    for victim in answer.victims:
        yield f"  {_victim(victim, answer.policy)}"
    if answer.lookups:
        yield "lookups that timed out or were shed never got here: the client counts them, see its counters"


def _lookup(lookup: pb.LookupExplanation, answer: pb.ExplainResponse) -> Iterator[str]:
    who = f"session {lookup.session!r}" if lookup.session else "a lookup of no session"
    yield f"{who}, {lookup.model}, {_seconds(lookup.seconds_ago)} ago"
    blocks = lookup.prompt_tokens // lookup.block_tokens
    got = f"resumed at {lookup.plan_tokens}" if lookup.plan_tokens else "started cold"
    yield f"  asked for {lookup.prompt_tokens} tokens ({blocks} whole blocks), {got}; rows reach {lookup.rows_tokens}"
    yield f"  {_why(lookup, answer)}"
    yield f"  {_nearest(lookup)}"
    if lookup.classes:
        classes = ", ".join(f"{count} {name}" for name, count in sorted(lookup.classes.items()))
        yield f"  objects of the {lookup.classed_blocks} deepest blocks it found, by class: {classes}"
    yield from _objects(lookup)


def _why(lookup: pb.LookupExplanation, answer: pb.ExplainResponse) -> str:
    reason = MISS_REASON.to_core(lookup.reason)
    block, tokens = lookup.missing_block, lookup.block_tokens
    where = f"block {block} (tokens {block * tokens} to {(block + 1) * tokens - 1})"
    ghost = _ghost(lookup.ghost, answer) if lookup.HasField("ghost") else ""
    since = f"not since the daemon's start {_seconds(answer.uptime_seconds)} ago"
    match reason:
        case MissReason.NONE:
            return "nothing is missing: it resumed as deep as it can"
        case MissReason.SHORT_PROMPT:
            return "the prompt is shorter than one boundary that can be resumed"
        case MissReason.SLOWER_THAN_RECOMPUTE:
            return "what is stored would take longer to load than to compute, by the measured speeds"
        case MissReason.STATE_MISSING:
            if ghost:
                return f"no state at the end of {where}: it {ghost}"
            if lookup.HasField("state_ghost"):
                there = f"the deepest that there was, at the end of block {lookup.state_ghost_block}"
                return f"no state at the end of {where}; {there}, {_ghost(lookup.state_ghost, answer)}"
            return f"no state at the end of {where}: none was taken that is remembered"
        case MissReason.PARENT_UNKNOWN:
            became = f": it {ghost}" if ghost else ""
            return f"a tail was asked for behind {where}, which is not stored{became}; the worker sends the whole chain"
        case MissReason.UPLOADING:
            return f"{where} is being written right now"
        case MissReason.COLDER:
            return f"{where} is stored, but not in host memory, and only that was asked for"
        case MissReason.NAMESPACE_DIFFERS:
            return (
                f"nothing was ever stored under this layout; {lookup.namesake_rows} blocks are under one of the same "
                f"model that differs in {', '.join(lookup.differing_fields)}"
            )
        case MissReason.NEVER_SEEN:
            return f"{where} " + (ghost or f"was never stored, {since}")
        case _:
            return f"{where} {ghost}"


def _ghost(ghost: pb.Ghost, answer: pb.ExplainResponse) -> str:
    """What became of an object, as what follows its name."""
    ago, age = _seconds(ghost.seconds_ago), _seconds(ghost.age_seconds)
    match DEPARTURE.to_core(ghost.departure):
        case Departure.EVICTED:
            tier, room = "", ""
            if ghost.HasField("room_for"):
                tier = f" from {TIER.to_core(ghost.room_for.tier).value}"
                room = f" to make room for {_owner(ghost.room_for)}"
            return f"was evicted{tier} by {answer.policy} {ago} ago{room}, {age} after its last use"
        case Departure.EXPIRED:
            return f"expired {ago} ago, unused for {age}: longer than the TTL that its writer gave"
        case Departure.CORRUPT:
            return f"was dropped {ago} ago: its bytes failed their checksum, or its device failed"
        case Departure.REPORTED:
            return f"was dropped {ago} ago: a worker reported wrong bytes"
        case Departure.UNFINISHED:
            return f"never became readable: its upload broke off {ago} ago"
        case Departure.WITH_PARENT:
            return f"was dropped {ago} ago, because rows that it stood on were lost"
        case Departure.REFUSED:
            return f"was refused {ago} ago: there was no room for it that could be made"


def _nearest(lookup: pb.LookupExplanation) -> str:
    shared = lookup.shared_blocks
    if shared * lookup.block_tokens < min(lookup.rows_tokens, lookup.prompt_tokens):
        return "what it found has left the store since"
    if not lookup.continuations:
        if not shared:
            return "no chain is stored under its layout"
        return f"the nearest stored chain shares {shared} blocks and ends there"
    to = f"the longest to block {'at least ' if lookup.is_deepest_partial else ''}{lookup.deepest_block}"
    others = f"{lookup.continuations} others are" if lookup.continuations > 1 else "one other is"
    if not shared:
        return f"no stored chain begins as it does; {others} stored, {to}"
    return f"the nearest stored chain shares {shared} blocks; behind them {others} stored, {to}"


def _objects(lookup: pb.LookupExplanation) -> Iterator[str]:
    """Neighbours of which the same is to be said in one line, from the root."""
    for words, found in groupby(reversed(lookup.objects), key=_object):
        blocks = [each.block for each in found]
        span = f"block {blocks[0]}" if blocks[0] == blocks[-1] else f"blocks {blocks[0]} to {blocks[-1]}"
        yield f"    {span}: {words}"


def _object(found: pb.StoredObject) -> str:
    kind = "state" if found.group else "rows"
    tiers = " and ".join(TIER.to_core(tier).value for tier in found.tiers) or "nowhere yet"
    words = f"{kind}, {OBJECT_CLASS.to_core(found.object_class).name.lower()}, on {tiers}, used {found.uses} times"
    words += f", last {_seconds(found.unused_seconds)} ago"
    if found.leases or found.pins:
        return words + f"; held by {found.leases} leases and {found.pins} pins"
    if found.is_in_use:
        return words + "; in use"
    for place in found.places:
        tier = TIER.to_core(place.tier).value
        if place.HasField("ahead"):
            words += f"; {place.ahead} of {place.candidates} candidates on {tier} go before it"
        else:
            words += f"; one of {place.candidates} candidates on {tier}"
    return words + ("" if found.places else "; not evictable: something stands on it")


def _victim(victim: pb.NextVictim, policy: str) -> str:
    found = victim.object
    kind = "state" if found.group else "rows"
    tier = TIER.to_core(victim.owner.tier).value
    return (
        f"on {tier}, for {_owner(victim.owner)}: {kind} of block {found.block} of {victim.model} "
        f"({OBJECT_CLASS.to_core(found.object_class).name.lower()}, {format_size(found.raw_bytes)}), "
        f"unused for {_seconds(found.unused_seconds)}, used {found.uses} times: "
        f"{policy} puts it first of {victim.candidates} that nothing stands on and nobody holds"
    )


def _owner(owner: pb.RoomOwner) -> str:
    if owner.namespace_id:
        return f"namespace {owner.namespace_id[:4].hex()}"
    if TIER.to_core(owner.tier) is Tier.DISK and owner.slot_pages:
        return f"frames of up to {format_size(owner.slot_pages * PAGE_BYTES)}"
    return "anything"


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
