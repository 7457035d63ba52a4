"""Bytes of the V4 caches, and their prefill cost, beside DeepSeek-V3.2 at a million tokens.

Exact arithmetic, no measurement but the last row. The ceiling of a ratio's row is V3.2's figure in the same unit; the
targets are the V4 report's (10 % and 7 % of the bytes, 27 % and 10 % of the FLOPs), met within half a per cent of V3.2.

    python bench/footprint.py [--json] [--quick]
"""

from __future__ import annotations

from harness import Against, Bench, main

from kvstore.core.cost import CostModel, decode_flops
from kvstore.core.footprint import MILLION_TOKENS, footprint
from kvstore.core.presets import v4_flash, v4_pro, v32

CALLS = 1000
ROUNDING = 0.005  # the report gives whole per cents


def collect(bench: Bench) -> None:
    base, last = v32(), MILLION_TOKENS - 1
    base_bytes = footprint(base).cache_bytes(MILLION_TOKENS)
    base_flops = decode_flops(base, last)
    assert base_flops is not None
    for layout, block_bytes, byte_share, flop_share in (
        (v4_flash(), 449_824, 0.07, 0.10),
        (v4_pro(), 644_024, 0.10, 0.27),
    ):
        size, flops, model = footprint(layout), decode_flops(layout, last), CostModel.of(layout)
        assert flops is not None and model is not None
        name = layout.model
        equals, at_most = Against.VALUE_EQUALS, Against.RATIO_AT_MOST
        bench.row(f"{name}: rows of a block", size.block_bytes, "B", target=block_bytes, against=equals, runs=1)
        bench.row(f"{name}: state", size.state_bytes, "B", runs=1)
        bench.row(
            f"{name}: cache of 1M tokens", size.cache_bytes(MILLION_TOKENS) / 1e9, "GB",
            ceiling=base_bytes / 1e9, target=byte_share + ROUNDING, against=at_most, runs=1,
        )  # fmt: skip
        bench.row(
            f"{name}: FLOP of the millionth token", flops / 1e9, "GFLOP",
            ceiling=base_flops / 1e9, target=flop_share + ROUNDING, against=at_most, runs=1,
        )  # fmt: skip
        seconds = bench.seconds(lambda model=model: [model.prefill_flops(n, last) for n in range(CALLS)], runs=5)
        bench.row(f"{name}: pricing a plan", seconds / CALLS * 1e6, "us")


if __name__ == "__main__":
    main("footprint", collect, doc=__doc__)
