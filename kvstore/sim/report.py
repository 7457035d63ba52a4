"""What a grid of simulations says of one trace: an object for --json, tables for people. Rates are shares of 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.table import Table

from kvstore.core.placement import Placement
from kvstore.core.shadows import ADAPTIVE
from kvstore.core.sizes import format_size
from kvstore.sim.bounds import Bound
from kvstore.sim.simulator import Served, SimResult, SimSettings
from kvstore.sim.trace import Trace


class Outcome(NamedTuple):
    """One simulation, and the best that any cache of its bytes could do."""

    settings: SimSettings
    result: SimResult
    minimum: Bound


@dataclass(frozen=True, slots=True)
class Report:
    """All simulations of one trace."""

    trace: Trace
    infinite: Bound
    unique_blocks: int
    outcomes: Sequence[Outcome]

    @property
    def layouts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(outcome.settings.layout.model for outcome in self.outcomes))

    @property
    def count_partial(self) -> bool:
        return any(outcome.settings.count_partial for outcome in self.outcomes)


def capacity_blocks(settings: SimSettings) -> int:
    """Blocks of rows for which all tiers together have bytes: what MIN may keep. States weigh nothing there."""
    return (settings.host_bytes + settings.disk_bytes) // settings.layout.rows.nbytes


def rates(result: SimResult | Bound, block_tokens: int) -> dict[str, float]:
    """`block_hit_rate` is a share of the prompts' blocks, the others are shares of input tokens."""
    if isinstance(result, Bound):
        hit_tokens = result.hit_tokens
    else:
        hit_tokens = min(result.hit_blocks * block_tokens, result.input_tokens)
    return {
        "block_hit_rate": _share(result.hit_blocks, result.blocks),
        "hit_token_rate": _share(hit_tokens, result.input_tokens),
        "resumed_token_rate": _share(result.resumed_tokens, result.input_tokens),
    }


def facts(report: Report) -> dict[str, object]:
    """Everything that the tables say and more, JSON-ready. Bytes, tokens, seconds; rates are shares of input tokens."""
    block_tokens = report.trace.block_tokens
    return {
        "trace": report.trace.name,
        "requests": len(report.trace.requests),
        "input_tokens": report.infinite.input_tokens,
        "blocks": report.infinite.blocks,
        "unique_blocks": report.unique_blocks,
        "block_tokens": block_tokens,
        "count_partial": report.count_partial,
        "layouts": list(report.layouts),
        "notes": dict(report.trace.notes),
        "bounds": {
            "infinite": rates(report.infinite, block_tokens),
            "min": [
                {
                    "host_bytes": host_bytes,
                    "disk_bytes": disk_bytes,
                    "capacity_blocks": bound.capacity_blocks,
                    **rates(bound, block_tokens),
                }
                for (host_bytes, disk_bytes), bound in _bounds_by_size(report).items()
            ],
        },
        "results": [_outcome_facts(report, outcome) for outcome in report.outcomes],
    }


def _outcome_facts(report: Report, outcome: Outcome) -> dict[str, object]:
    settings, result, block_tokens = outcome.settings, outcome.result, report.trace.block_tokens
    return {
        "layout": settings.layout.model,
        "policy": settings.policy,
        "keep_seconds": settings.keep_seconds,
        "placement": placement_name(settings.placement),
        "replay": settings.placement.replay,
        "ideal_space": settings.is_ideal_space,
        "resume_alignment": settings.layout.resume_alignment,
        "host_bytes": settings.host_bytes,
        "disk_bytes": settings.disk_bytes,
        **rates(result, block_tokens),
        "bounds": {"infinite": rates(report.infinite, block_tokens), "min": rates(outcome.minimum, block_tokens)},
        "hit_blocks": result.hit_blocks,
        "resumed_tokens": result.resumed_tokens,
        "by_tier": {tier: _share(tokens, result.input_tokens) for tier, tokens in result.by_tier.items()},
        "saved_flops": result.resumed_flops,
        "saved_flop_rate": result.resumed_flops / result.input_flops if result.input_flops else None,
        "saved_seconds": saved_seconds(settings, result),
        "load_seconds": dict(result.load_seconds) if settings.worker_flops else None,
        "by_kind": _classes(result.by_kind, settings.worker_flops),
        "by_mode": _classes(result.by_mode, settings.worker_flops),
        "reasons": dict(result.reasons),
        "host_bytes_written": result.host_bytes_written,
        "disk_bytes_written": result.disk_bytes_written,
        "disk_admission": settings.disk_admission.value,
        "disk_write_bytes_per_day": settings.disk_write_bytes_per_day,
        "disk_ratio": settings.disk_ratio,
        "host_bytes_per_second": settings.host_bytes_per_second,
        "disk_bytes_per_second": settings.disk_bytes_per_second,
        "worker_flops": settings.worker_flops,
        "hit_blocks_by_tier": {"host": result.hit_blocks - result.disk_hit_blocks, "disk": result.disk_hit_blocks},
        "blocks_written_by_tier": {"host": result.host_blocks_written, "disk": result.disk_blocks_written},
        "disk_writes_per_hit_block": writes_per_hit(result),
        "disk_held_back": result.disk_held_back,
        "disk_over_budget": result.disk_over_budget,
        "states_written": result.states_written,
        "evicted": result.evicted,
        "refused": result.refused,
        "seconds": result.seconds,
        "block_refs": result.block_refs,
        "block_refs_per_second": result.block_refs / result.seconds if result.seconds else None,
    }


def tables(report: Report) -> list[Table]:
    """The bounds and one row a simulation; then hits by kind and mode of requests, where the trace names any.

    `found` is a share of the prompts' blocks, `resumed` of their tokens; beside each the bound of its size.
    """
    return [_main_table(report), *_class_tables(report)]


def _main_table(report: Report) -> Table:
    block_tokens, infinite = report.trace.block_tokens, rates(report.infinite, report.trace.block_tokens)
    title = (
        f"{report.trace.name}: {len(report.trace.requests):,} requests, {report.infinite.input_tokens:,} input tokens, "
        f"{report.unique_blocks:,} unique blocks of {block_tokens}; {', '.join(report.layouts)}"
    )
    caption = (
        f"Without end: {_percent(infinite['block_hit_rate'])} of blocks found, "
        f"{_percent(infinite['resumed_token_rate'])} of input tokens resumed. "
        "MIN: the most for any cache of these bytes, if states weighed nothing."
    )
    has_disk = any(outcome.settings.disk_bytes for outcome in report.outcomes)
    is_priced = any(outcome.settings.worker_flops for outcome in report.outcomes)
    has_admission = has_disk and len({admission_label(outcome.settings) for outcome in report.outcomes}) > 1
    has_states = any(outcome.settings.layout.state is not None for outcome in report.outcomes)
    tiers = list(dict.fromkeys(tier for outcome in report.outcomes for tier in sorted(outcome.result.by_tier)))
    tiers = tiers if has_disk else []
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for column in ("policy", *(["placement"] if has_states else []), *(["to disk goes"] if has_admission else [])):
        table.add_column(column, no_wrap=True)
    for column, is_shown in (
        ("host", True),
        ("disk", has_disk),
        ("found", True),
        ("MIN", True),
        ("resumed", True),
        ("MIN", True),
        *((f"from {tier}", True) for tier in tiers),
        ("written", True),
        ("to disk", has_disk),
        ("writes/hit", has_disk),
        ("load", is_priced),
        ("saved", is_priced),
        ("states", has_states),
    ):
        if is_shown:
            table.add_column(column, justify="right", no_wrap=True)
    for settings, result, minimum in report.outcomes:
        found, best = rates(result, block_tokens), rates(minimum, block_tokens)
        table.add_row(
            policy_label(settings),
            *([placement_label(settings)] if has_states else []),
            *([admission_label(settings)] if has_admission else []),
            format_size(settings.host_bytes),
            *([format_size(settings.disk_bytes)] if has_disk else []),
            _percent(found["block_hit_rate"]),
            _percent(best["block_hit_rate"]),
            _percent(found["resumed_token_rate"]),
            _percent(best["resumed_token_rate"]),
            *(_percent(_share(result.by_tier.get(tier, 0), result.input_tokens)) for tier in tiers),
            format_size(result.host_bytes_written),
            *([format_size(result.disk_bytes_written), _ratio(writes_per_hit(result))] if has_disk else []),
            *([f"{sum(result.load_seconds.values()):,.0f} s", _seconds(settings, result)] if is_priced else []),
            *([f"{result.states_written:,}"] if has_states else []),
        )
    return table


def _class_tables(report: Report) -> list[Table]:
    made = []
    for heading, pick in (("kind", _kinds), ("mode", _modes)):
        names = sorted({name for outcome in report.outcomes for name in pick(outcome.result)})
        if not names:
            continue
        table = Table(title=f"Resumed, by {heading}, as a share of its own input tokens", title_justify="left")
        for column in ("policy", "placement"):
            table.add_column(column, no_wrap=True)
        for column in ("host", *names):
            table.add_column(column, justify="right", no_wrap=True)
        for settings, result, _ in report.outcomes:
            served = pick(result)
            cells = [
                _percent(_share(served[name].resumed_tokens, served[name].input_tokens)) if name in served else ""
                for name in names
            ]
            table.add_row(policy_label(settings), placement_label(settings), format_size(settings.host_bytes), *cells)
        made.append(table)
    return made


def policy_label(settings: SimSettings) -> str:
    if settings.keep_seconds is None:
        return settings.policy if settings.policy == ADAPTIVE else f"{settings.policy}, keep {ADAPTIVE}"
    return settings.policy + (f", keep {settings.keep_seconds:g} s" if settings.keep_seconds else "")


def admission_label(settings: SimSettings) -> str:
    budget = settings.disk_write_bytes_per_day
    return settings.disk_admission.value + (f", {budget / 1e12:g} TB a day" if budget else "")


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _seconds(settings: SimSettings, result: SimResult) -> str:
    seconds = saved_seconds(settings, result)
    return "" if seconds is None else f"{seconds:,.0f} s"


def placement_name(placement: Placement) -> str:
    """As `Placement.parse` reads it."""
    return placement.text


def placement_label(settings: SimSettings) -> str:
    """For people: nothing where there are no states to place."""
    if settings.layout.state is None:
        return "-"
    name = placement_name(settings.placement)
    return name if settings.placement.replay else f"{name}, no replay"


def _bounds_by_size(report: Report) -> dict[tuple[int, int], Bound]:
    return {(one.settings.host_bytes, one.settings.disk_bytes): one.minimum for one in report.outcomes}


def _kinds(result: SimResult) -> Mapping[str, Served]:
    return result.by_kind


def _modes(result: SimResult) -> Mapping[str, Served]:
    return result.by_mode


def _classes(table: Mapping[str, Served], worker_flops: float | None) -> dict[str, dict[str, float | None]]:
    return {
        name: {
            "input_tokens": one.input_tokens,
            "resumed_tokens": one.resumed_tokens,
            "resumed_token_rate": _share(one.resumed_tokens, one.input_tokens),
            "saved_flop_rate": one.resumed_flops / one.input_flops if one.input_flops else None,
            "saved_seconds": one.resumed_flops / worker_flops if worker_flops else None,
        }
        for name, one in sorted(table.items())
    }


def saved_seconds(settings: SimSettings, result: SimResult) -> float | None:
    """Of prefill that was not computed, at the worker's speed."""
    return result.resumed_flops / settings.worker_flops if settings.worker_flops else None


def writes_per_hit(result: SimResult) -> float | None:
    """Blocks written to disk for each that was found there and not in host memory."""
    return result.disk_blocks_written / result.disk_hit_blocks if result.disk_hit_blocks else None


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
