"""Hit rate against bytes, one line a policy and placement, with the bounds; SVG or PNG.

Needs matplotlib, which the optional extra `plot` brings: import this module only where a plot is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from kvstore.core.errors import InvalidInput
from kvstore.core.sizes import format_size
from kvstore.sim.report import Outcome, Report, placement_label, policy_label, rates

FORMATS = ("svg", "png")
INCHES = (7.0, 4.5)  # of one trace's plot
DOTS_PER_INCH = 150


def check_format(path: Path) -> str:
    """`svg` or `png`, by the file's name. InvalidInput otherwise."""
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise InvalidInput(f"--plot {path}: the name says no format; end it in .svg or .png")
    return suffix


def draw(reports: Sequence[Report], path: Path) -> None:
    """One plot a trace, side by side. The same reports give the same SVG, byte for byte."""
    suffix = check_format(path)
    # text stays text, so that an SVG can be searched and tested
    with rc_context({"svg.hashsalt": "kvstore", "svg.fonttype": "none"}):
        figure = Figure(figsize=(INCHES[0] * len(reports), INCHES[1]), dpi=DOTS_PER_INCH, layout="constrained")
        for axes, report in zip(figure.subplots(1, len(reports), squeeze=False)[0], reports, strict=True):
            _draw_one(axes, report)
        metadata = {"Date": None} if suffix == "svg" else {}
        try:
            figure.savefig(path, format=suffix, metadata=metadata)
        except OSError as error:
            raise InvalidInput(f"--plot {path}: cannot be written ({error.strerror}); name another file") from error


def _draw_one(axes: Axes, report: Report) -> None:
    rate = "block_hit_rate" if report.count_partial else "resumed_token_rate"
    block_tokens = report.trace.block_tokens
    lines: dict[str, list[Outcome]] = {}
    for outcome in report.outcomes:
        lines.setdefault(_label(outcome), []).append(outcome)
    for label, outcomes in lines.items():
        points = sorted((one.settings.host_bytes, rates(one.result, block_tokens)[rate]) for one in outcomes)
        axes.plot([nbytes for nbytes, _ in points], [100 * share for _, share in points], marker="o", label=label)
    best = {}
    for one in report.outcomes:
        best[one.settings.disk_bytes, one.settings.host_bytes] = 100 * rates(one.minimum, block_tokens)[rate]
    for disk_bytes in sorted({disk for disk, _ in best}):
        points = sorted((host, share) for (disk, host), share in best.items() if disk == disk_bytes)
        with_disk = f" with {format_size(disk_bytes)} of disk" if disk_bytes else ""
        axes.plot(*zip(*points, strict=True), color="black", linestyle="--", marker=".", label=f"MIN{with_disk}")
    axes.axhline(100 * rates(report.infinite, block_tokens)[rate], color="black", linestyle=":", label="without end")
    axes.set_xscale("log", base=2)
    sizes = sorted({host for _, host in best})
    axes.set_xticks(sizes)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda nbytes, _: format_size(int(nbytes))))
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("host bytes")
    axes.set_ylabel("blocks found, %" if report.count_partial else "input tokens resumed, %")
    axes.set_title(f"{report.trace.name}, {', '.join(report.layouts)}, blocks of {block_tokens}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _label(outcome: Outcome) -> str:
    settings = outcome.settings
    parts = [policy_label(settings)]
    if settings.layout.state is not None:
        parts.append(placement_label(settings))
    if settings.disk_bytes:
        parts.append(f"{format_size(settings.disk_bytes)} of disk")
    return " · ".join(parts)
