"""Rows of bench/hit_rate.py about what a layout costs: V4-Pro's sizes, resume alignment, real slots beside bytes.

An alignment of more than a block (a paged engine's page) takes states, and resumes, only at its multiples: blocks are
of 128 tokens here, so that 128, 256 and 512 can be told apart. The traces name blocks of 512, so every row of theirs
stands for four equal blocks.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness import Bench

from kvstore.sim.block_size import at_block_size
from kvstore.sim.bounds import References
from kvstore.sim.grid import Cell, run_grid
from kvstore.sim.layouts import sim_layout
from kvstore.sim.simulator import SimSettings
from kvstore.sim.trace import Trace

GIB = 1 << 30
SIZES = (4, 16, 64)  # GiB of host memory
BLOCK = 128
ALIGNMENTS = (128, 256, 512)


def layout_rows(bench: Bench, traces: Iterable[Trace]) -> None:
    cells, names, ceilings = [], [], []
    sizes = SIZES[:1] if bench.is_quick else SIZES
    for trace in traces:
        whole = References(trace)
        for gib in sizes:
            layout = sim_layout("v4-pro", trace.block_tokens)
            ceiling = 100 * whole.minimum(gib * GIB // layout.rows.nbytes).resumed_token_rate
            for is_ideal in (True, False):
                cells.append(Cell(trace, SimSettings(layout, gib * GIB, is_ideal_space=is_ideal)))
                names.append(f"{trace.name}, v4-pro, {gib} GiB: {'bytes' if is_ideal else 'slots'}")
                ceilings.append(ceiling)
        fine = at_block_size(trace, BLOCK)
        for alignment in ALIGNMENTS:
            layout = sim_layout("v4-flash", BLOCK, alignment)
            for is_ideal in (True, False):
                cells.append(Cell(fine, SimSettings(layout, 16 * GIB, is_ideal_space=is_ideal)))
                space = "bytes" if is_ideal else "slots"
                names.append(f"{trace.name}, v4-flash, 16 GiB, aligned to {alignment}: {space}")
                ceilings.append(None)
    with bench.step(f"{len(cells)} simulations of layouts"):
        results = run_grid(cells)
    for name, ceiling, result in zip(names, ceilings, results, strict=True):
        bench.row(f"{name}: resumed", 100 * result.resumed_rate, "%", ceiling=ceiling, runs=1)
