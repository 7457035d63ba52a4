"""`kvstore check DIR`: offline verification of a disk folder. Reads everything, changes nothing.

Exit status: 0 clean, 1 damage found, 2 could not check.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from kvstore.core.errors import OperatorError
from kvstore.tiers.folder import lock_folder
from kvstore.tiers.manifest import FILE_NAME
from kvstore.tiers.segment import segments_in
from kvstore.tiers.verify import Verification, verify_folder

QUIET_SECONDS = 2.0  # work that is done by then shows no progress
BAD_FRAMES_SHOWN = 50  # in the table; --json lists them all


def check_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="disk folder of a daemon that is not running")],
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Read every frame of a disk folder, verify it, and compare the manifest with what is there."""
    found = check(folder)
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "clean": found.is_clean, **asdict(found)}))
    else:
        _print(Console(), folder, found)
    if not found.is_clean:
        raise typer.Exit(1)


def check(folder: Path) -> Verification:
    """Verify a folder that no daemon holds. OperatorError says why that cannot be done."""
    try:
        is_ours = folder.is_dir() and (
            segments_in(folder) or (folder / FILE_NAME).exists() or (folder / "lock").exists()
        )
    except OSError as error:
        raise OperatorError(f"{folder} cannot be read ({error.strerror}): check its owner and mode") from error
    if not is_ours:
        raise OperatorError(f"{folder} is no disk folder of kvstore: give the folder that `serve --disk` was given")
    lock = lock_folder(folder)
    try:
        with _progress() as progress:
            return verify_folder(folder, progress)
    except OSError as error:
        raise OperatorError(f"{folder} cannot be read: {error.strerror}; check the device") from error
    finally:
        os.close(lock)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error for work that takes long."""
    columns = (TextColumn("verifying slots"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("slots")
    started = time.monotonic()
    with ExitStack() as stack:

        def show(done: int, slots: int) -> None:
            if not bar.live.is_started and time.monotonic() - started > QUIET_SECONDS:
                stack.enter_context(bar)
            bar.update(task, completed=done, total=slots)

        yield show


def _print(console: Console, folder: Path, found: Verification) -> None:
    table = Table(title=f"{folder}: {'clean' if found.is_clean else 'damaged'}")
    table.add_column("what")
    table.add_column("count", justify="right")
    for name, count in (
        ("segments", found.segments),
        ("slots", found.slots),
        ("objects in the manifest", found.entries),
        ("whole", found.whole),
        ("bytes of these", found.raw_bytes),
        ("bad", len(found.bad)),
        ("orphans (whole, not in the manifest)", found.orphans),
        ("leftovers (unfinished or overwritten)", found.leftovers),
    ):
        table.add_row(name, f"{count:,}")
    console.print(table)
    for problem in found.problems:
        console.print(problem, markup=False, highlight=False)
    for bad in found.bad[:BAD_FRAMES_SHOWN]:
        place = f"segment {bad.segment} page {bad.page} object {bad.prefix}"
        console.print(f"{place}: {bad.problem}", markup=False, highlight=False)
    if len(found.bad) > BAD_FRAMES_SHOWN:
        console.print(f"and {len(found.bad) - BAD_FRAMES_SHOWN} more: --json lists them all")
    if not found.is_clean:
        console.print("The daemon drops what does not verify when it starts or reads it; nothing else is needed.")
