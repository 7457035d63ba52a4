"""What every bench shares: arguments, rows, the table, the JSON object, the machine and the commit.

A bench is a script with a `collect(bench)` that measures and adds rows:

    def collect(bench: Bench) -> None:
        ceiling = bench.median(lambda: memcpy_gbps(), runs=5)
        got = bench.median(lambda: fetch_gbps(), runs=5)
        bench.row("inline fetch, 4 MB", got, "GB/s", ceiling=ceiling, target=0.7)

    if __name__ == "__main__":
        main("throughput", collect, seed=7)

`--quick` asks for the core rows in under a minute, `--json` prints one object: {"bench", "commit", "machine",
"seed", "rows": [{"name", "value", "unit", "ceiling", "ratio", "target", "ok", "runs"}]}. A row is `ok` when it meets
its target, null without one; a run in which a row misses its target exits with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path

from rich.console import Console
from rich.table import Table


class Against(Enum):
    """What a target is compared with, and from which side."""

    RATIO_AT_LEAST = "ratio >="  # value / ceiling
    RATIO_AT_MOST = "ratio <="
    VALUE_AT_LEAST = "value >="
    VALUE_AT_MOST = "value <="
    VALUE_EQUALS = "value =="


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure. `ceiling` was measured in the same run, in the same unit; `ratio` is value / ceiling."""

    name: str
    value: float
    unit: str
    ceiling: float | None
    ratio: float | None
    target: float | None
    ok: bool | None  # None without a target
    runs: int  # of which `value` is the median


@dataclass(slots=True)
class Bench:
    """One run of a bench, handed to its `collect`."""

    name: str
    seed: int
    is_quick: bool
    options: argparse.Namespace = field(default_factory=argparse.Namespace)  # what `add_arguments` asked for
    rows: list[Row] = field(default_factory=list)
    against: dict[str, Against] = field(default_factory=dict)
    _last_runs: int = 1

    def row(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        ceiling: float | None = None,
        target: float | None = None,
        against: Against | None = None,
        runs: int | None = None,
    ) -> Row:
        """Add a figure. The target is for the ratio where there is a ceiling, for the value otherwise.

        `runs` defaults to those of the last `median` or `times`.
        """
        ratio = value / ceiling if ceiling else None
        if against is None:
            against = Against.VALUE_AT_LEAST if ratio is None else Against.RATIO_AT_LEAST
        ok = None if target is None else _meets(against, value, ratio, target)
        row = Row(name, value, unit, ceiling, ratio, target, ok, self._last_runs if runs is None else runs)
        self.rows.append(row)
        self.against[name] = against
        return row

    def median(self, measure: Callable[[], float], runs: int = 5, warmups: int = 1) -> float:
        """Median of `runs` calls of `measure`, which returns the figure; a quick run takes at most three."""
        self._last_runs = min(runs, 3) if self.is_quick else runs
        for _ in range(warmups):
            measure()
        return statistics.median(measure() for _ in range(self._last_runs))

    def seconds(self, action: Callable[[], object], runs: int = 5, warmups: int = 1) -> float:
        """Median wall time of `action`."""

        def once() -> float:
            start = time.perf_counter()
            action()
            return time.perf_counter() - start

        return self.median(once, runs, warmups)

    def note(self, text: str) -> None:
        """Progress, on standard error, so that --json stays one object."""
        print(text, file=sys.stderr, flush=True)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Announce work that takes longer than two seconds, and how long it took."""
        start = time.perf_counter()
        self.note(f"{text} ...")
        yield
        self.note(f"{text}: {time.perf_counter() - start:.1f} s")

    @property
    def missed(self) -> list[Row]:
        return [row for row in self.rows if row.ok is False]

    def as_object(self) -> dict[str, object]:
        return {
            "bench": self.name,
            "commit": commit_id(),
            "machine": machine(),
            "seed": self.seed,
            "rows": [asdict(row) for row in self.rows],
        }

    def table(self) -> Table:
        table = Table("name", title=f"{self.name} · {commit_id()} · {machine()} · seed {self.seed}")
        for column in ("value", "ceiling", "ratio", "target", "runs"):
            table.add_column(column, justify="right")
        table.add_column("ok")
        for row in self.rows:
            table.add_row(
                row.name,
                f"{_number(row.value)} {row.unit}",
                "" if row.ceiling is None else f"{_number(row.ceiling)} {row.unit}",
                "" if row.ratio is None else _number(row.ratio),
                "" if row.target is None else f"{self.against[row.name].value} {_number(row.target)}",
                f"{row.runs}",
                {None: "", True: "yes", False: "NO"}[row.ok],
            )
        return table


def main(
    name: str,
    collect: Callable[[Bench], None],
    *,
    seed: int = 7,
    doc: str | None = None,
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    arguments: list[str] | None = None,
) -> None:
    """Read the arguments, run `collect`, print its rows; exits with 1 where a row misses its target."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="core rows only, under a minute")
    parser.add_argument("--seed", type=int, default=seed)
    if add_arguments is not None:
        add_arguments(parser)
    options = parser.parse_args(arguments)
    bench = Bench(name, options.seed, options.quick, options)
    collect(bench)
    if options.json:
        print(json.dumps(bench.as_object()))
    else:
        Console().print(bench.table())
    if bench.missed:
        bench.note("missed: " + "; ".join(row.name for row in bench.missed))
        raise SystemExit(1)


def commit_id() -> str:
    """Short id of the commit this file belongs to, `+changes` where tracked files differ; `unknown` outside git."""
    folder = Path(__file__).resolve().parent
    try:
        git = ["git", "-C", str(folder)]
        short = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return short.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def machine() -> str:
    """What the figures depend on, and nothing that names the machine: cores, CPU model, memory, Python."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return f"{cores} cores, {_cpu_model()}, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.machine()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def _meets(against: Against, value: float, ratio: float | None, target: float) -> bool:
    match against:
        case Against.RATIO_AT_LEAST:
            return ratio is not None and ratio >= target
        case Against.RATIO_AT_MOST:
            return ratio is not None and ratio <= target
        case Against.VALUE_AT_LEAST:
            return value >= target
        case Against.VALUE_AT_MOST:
            return value <= target
        case Against.VALUE_EQUALS:
            return value == target


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"
