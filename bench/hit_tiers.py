"""Rows of bench/hit_rate.py about two tiers: what the disk finds, and what it must be written for that.

Host memory of 5 % of the bytes of all the trace's blocks, a disk of 40 %, V4-Flash, real slots. `all` writes all
until a budget is spent; `second-hit` knows no budget; `adaptive` keeps one. A budget is spent at the trace's
own pace: an hour of traffic has a 24th of a day's, and the hour that a start may borrow.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness import Bench

from kvstore.core.disk_admission import DiskAdmission
from kvstore.sim.bounds import References
from kvstore.sim.grid import Cell, run_grid
from kvstore.sim.layouts import sim_layout
from kvstore.sim.simulator import SimSettings
from kvstore.sim.trace import Trace

HOST_PERCENT, DISK_PERCENT = 5, 40
TB = 10**12
BUDGETS = (1, 5, 20)  # TB a day
GIB = 1 << 30


def tier_rows(bench: Bench, traces: Iterable[Trace]) -> None:
    choices = [(DiskAdmission.ALL, 0), (DiskAdmission.SECOND_HIT, 0)]
    budgets = BUDGETS[:1] if bench.is_quick else BUDGETS
    choices += [(mode, budget) for budget in budgets for mode in (DiskAdmission.ALL, DiskAdmission.ADAPTIVE)]
    cells, names, ceilings = [], [], []
    for trace in traces:
        layout, references = sim_layout("v4-flash", trace.block_tokens), References(trace)
        unique_bytes = references.unique_blocks * layout.rows.nbytes
        host, disk = unique_bytes * HOST_PERCENT // 100, unique_bytes * DISK_PERCENT // 100
        ceiling = 100 * references.minimum((host + disk) // layout.rows.nbytes).resumed_token_rate
        for mode, budget in choices:
            settings = SimSettings(
                layout, host, disk, disk_admission=mode, disk_write_bytes_per_day=budget * TB
            )  # fmt: skip
            cells.append(Cell(trace, settings))
            names.append(f"{trace.name}, two tiers, {mode.value}" + (f", {budget} TB a day" if budget else ""))
            ceilings.append(ceiling)
    with bench.step(f"{len(cells)} simulations of two tiers"):
        results = run_grid(cells)
    for name, ceiling, result in zip(names, ceilings, results, strict=True):
        asked = result.input_tokens
        bench.row(f"{name}: resumed", 100 * result.resumed_rate, "%", ceiling=ceiling, runs=1)
        bench.row(
            f"{name}: rows from host", 100 * (result.hit_blocks - result.disk_hit_blocks) / result.blocks, "%", runs=1
        )
        bench.row(f"{name}: rows from disk", 100 * result.disk_hit_blocks / result.blocks, "%", runs=1)
        bench.row(f"{name}: resumed, some of it from disk", 100 * result.by_tier.get("disk", 0) / asked, "%", runs=1)
        bench.row(f"{name}: written to disk", result.disk_bytes_written / GIB, "GiB", runs=1)
        if result.disk_hit_blocks:
            rate = result.disk_blocks_written / result.disk_hit_blocks
            bench.row(f"{name}: writes a block found on disk", rate, "blocks", runs=1)
