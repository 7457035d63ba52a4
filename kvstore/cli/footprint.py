"""`kvstore footprint`: what a layout's cache weighs and, with --flops, what its prefill costs.

Prints how each figure is made and where it differs from the DeepSeek-V4 report. All arithmetic is in `core`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from kvstore.core.cost import BF16_WEIGHT, CostModel, decode_flops
from kvstore.core.errors import InvalidInput
from kvstore.core.footprint import MILLION_TOKENS, Footprint, footprint
from kvstore.core.layout import ModelLayout
from kvstore.core.presets import preset, v32

# What the V4 report says of a context of one million tokens, beside V3.2 (introduction and figure 1): for the reader
# to compare with, never used in a calculation.
REPORTED = {
    "deepseek-v4-pro": {"bytes": "10 % (9.5x smaller)", "flops": "27 % (3.7x lower)"},
    "deepseek-v4-flash": {"bytes": "7 % (13.7x smaller)", "flops": "10 % (9.8x lower)"},
}
MAX_TOKENS = 1 << 31  # token counts are int32


def footprint_command(
    layout: Annotated[str, typer.Argument(help="v4-flash, v4-pro, v32 or v4-demo")],
    tokens: Annotated[int, typer.Option(help="length of the cached prefix, in tokens")] = MILLION_TOKENS,
    flops: Annotated[bool, typer.Option("--flops", help="also the prefill cost per token by position")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Bytes of a model's cache per layer kind, token and million tokens, and the ratio to DeepSeek-V3.2."""
    if not 1 <= tokens < MAX_TOKENS:
        raise InvalidInput(f"--tokens {tokens} is out of range: give 1 to {MAX_TOKENS - 1}")
    chosen = preset(layout)
    facts = figures(chosen, tokens, with_flops=flops)
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        _print(Console(), chosen, tokens, facts)


def figures(layout: ModelLayout, tokens: int, *, with_flops: bool) -> dict[str, object]:
    """Everything the command prints, as one JSON-ready object. Bytes and FLOP."""
    size, base = footprint(layout), footprint(v32())
    facts: dict[str, object] = {
        "model": size.model,
        "tokens": tokens,
        "block_tokens": size.block_tokens,
        "kinds": [{**asdict(kind), "kind": kind.kind.value} for kind in size.kinds],
        "components": [asdict(component) for component in size.components],
        "block_bytes": size.block_bytes,
        "bytes_per_token": size.bytes_per_token,
        "bytes_per_million_tokens": size.bytes_per_token * MILLION_TOKENS,
        "state_bytes": size.state_bytes,
        "state_tokens": size.state_tokens,
        "optional_bytes": size.optional_bytes,
        "host_block_bytes": size.host_block_bytes,
        "host_state_bytes": size.host_state_bytes,
        "cache_bytes": size.cache_bytes(tokens),
        "host_bytes": size.host_bytes(tokens),
        "v32_cache_bytes": base.cache_bytes(tokens),
        "ratio_to_v32": _ratio(size.cache_bytes(tokens), base.cache_bytes(tokens)),
        "reported_at_1m": REPORTED.get(size.model),
    }
    if with_flops:
        facts["flops"] = _flops(layout, tokens)
    return facts


def _flops(layout: ModelLayout, tokens: int) -> dict[str, object] | None:
    model, base = CostModel.of(layout), CostModel.of(v32())
    if model is None or base is None:
        return None
    last = tokens - 1
    token, base_token = model.token(last), base.token(last)
    decode, base_decode = decode_flops(layout, last), decode_flops(v32(), last)
    assert decode is not None and base_decode is not None
    return {
        "by_position": [
            {
                "position": position,
                **(parts := model.token(position)).parts(),
                "total": parts.total,
                "weighted": parts.weighted(model.compute).total,
                "ratio_to_v32": parts.weighted(model.compute).total / base.token(position).weighted(base.compute).total,
            }
            for position in _positions(tokens)
        ],
        "weights": {"index_scan": model.compute.index_flop_weight, "attention": model.compute.core_flop_weight},
        "prefill": model.prefill_flops(0, tokens),
        "ratio_to_v32": {
            "plain": token.total / base_token.total,
            "weighted": token.weighted(model.compute).total / base_token.weighted(base.compute).total,
            "decode": decode / base_decode,
            "prefill": model.prefill_flops(0, tokens) / base.prefill_flops(0, tokens),
        },
    }


def _positions(tokens: int) -> list[int]:
    """The first token, powers of four from 4 Ki on, and the last."""
    steps = [4**power - 1 for power in range(6, 16)]
    return sorted({0, *(step for step in steps if step < tokens - 1), tokens - 1})


def _ratio(value: float, base: float) -> float | None:
    return value / base if base else None


def _print(console: Console, layout: ModelLayout, tokens: int, facts: dict[str, object]) -> None:
    size = footprint(layout)
    _print_bytes(console, size, tokens)
    ratio, reported = facts["ratio_to_v32"], REPORTED.get(layout.model)
    if not size.cache_bytes(tokens):
        console.print(f"{tokens:,} tokens are less than one block: nothing is cached.")
    elif isinstance(ratio, float):
        console.print(
            f"{tokens:,} tokens: {_bytes(size.cache_bytes(tokens))}, {ratio:.2%} of DeepSeek-V3.2's "
            f"{_bytes(footprint(v32()).cache_bytes(tokens))} ({1 / ratio:.2f}x smaller)"
            + (f"; the report says {reported['bytes']} at a million." if reported else ".")
        )
        console.print(
            "Made of: rows of whole blocks and, for V4, one state. V3.2 is 61 layers of 656 B (FP8 MLA) and 132 B "
            "(indexer key) a token. Ours counts scales and the padding byte of each entry.",
            style="dim",
        )
    costs = facts.get("flops")
    if isinstance(costs, dict):
        _print_flops(console, layout, tokens, costs)
    elif "flops" in facts:
        console.print("The layout has no compute dimensions, so its prefill has no price.")


def _print_bytes(console: Console, size: Footprint, tokens: int) -> None:
    table = Table("layers", "kind", "B/token a layer", "B/token", "B a block", "per 1M tokens", "B in the state")
    for column in (table.columns[0], *table.columns[2:]):
        column.justify = "right"
    for kind in size.kinds:
        table.add_row(
            f"{kind.layers}",
            kind.kind.value.upper(),
            f"{kind.layer_bytes_per_token:,.4f}".rstrip("0").rstrip("."),
            f"{kind.bytes_per_token:,.2f}",
            f"{kind.block_bytes:,}",
            _bytes(kind.bytes_per_token * MILLION_TOKENS),
            f"{kind.state_bytes:,}",
        )
    table.add_section()
    table.add_row(
        f"{sum(kind.layers for kind in size.kinds)}",
        "all",
        "",
        f"{size.bytes_per_token:,.2f}",
        f"{size.block_bytes:,}",
        _bytes(size.bytes_per_token * MILLION_TOKENS),
        f"{size.state_bytes:,}",
    )
    table.title = f"{size.model}, blocks of {size.block_tokens} tokens"
    console.print(table)
    parts = Table("group", "component", "layers", "B an object")
    for column in parts.columns[2:]:
        column.justify = "right"
    for component in size.components:
        row = (component.group, component.component, f"{component.layers}", f"{component.object_bytes:,}")
        parts.add_row(*row)
    console.print(parts)
    console.print(
        f"In the host tier a block takes a slot of {size.host_block_bytes:,} B"
        + (
            f" and a state {size.host_state_bytes // size.host_block_bytes} slots; a state weighs as much as "
            f"{size.state_tokens:,.0f} tokens of rows."
            if size.state_bytes
            else "; every boundary is a resume point without a state."
        )
    )


def _print_flops(console: Console, layout: ModelLayout, tokens: int, costs: dict[str, object]) -> None:
    rows, ratios, weights = costs["by_position"], costs["ratio_to_v32"], costs["weights"]
    assert isinstance(rows, list) and isinstance(ratios, dict) and isinstance(weights, dict)
    table = Table("position", title="Prefill, GFLOP a token")
    parts = [name for name in rows[0] if name not in ("position", "ratio_to_v32")]
    for name in parts:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("of V3.2", justify="right")
    for row in rows:
        cells = [f"{row[name] / 1e9:,.2f}" for name in parts]
        table.add_row(f"{row['position']:,}", *cells, f"{row['ratio_to_v32']:.1%}")
    console.print(table)
    reported = REPORTED.get(layout.model)
    console.print(
        f"The last token costs {ratios['weighted']:.2%} of V3.2's in weighted FLOP, {ratios['plain']:.2%} in plain "
        f"FLOP; as decoding at the reference code's precisions {ratios['decode']:.2%}"
        + (f"; the report says {reported['flops']} at a million." if reported else ".")
        + f" The whole prefill of {tokens:,} tokens costs {costs['prefill']:.4g} weighted FLOP, "
        f"{ratios['prefill']:.2%} of V3.2's."
    )
    console.print(
        f"Plain: 2 FLOP a multiply-add of every matrix product. Weighted: in FP8 FLOP, the indexer's scan times "
        f"{weights['index_scan']:g}, attention (BF16) times {weights['attention']:g}. Decoding: also the grouped "
        f"output's first stage, MLA's absorbed products and the language-model head in BF16, times {BF16_WEIGHT}. "
        "The report counts equivalent FP8 FLOPs of one token and does not list its terms; the whole prefill's share "
        "is larger because V3.2's scan grows with the position and is small early on.",
        style="dim",
    )


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.2f} {unit}"
        value /= 1024
    return f"{value:,.2f} GiB"
