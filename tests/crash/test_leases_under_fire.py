"""A lease pins bytes: whoever reads in shared memory never sees its slots used again while the lease holds, and never
believes what it saw where it does not (RELIABILITY C11).

Readers copy, verify, view and go layer by layer while the host tier is at its limit and writers go on. Each byte is
compared with what its document's number says, that of views at their release. Some readers outlast their lease, some
give it back before they read: then only a stamp can tell.
Heavier: `pytest -m slow tests/crash/test_leases_under_fire.py`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from crash_tools import LAYOUTS, Document, client_of, daemon
from lease_clients import DEMO, is_right
from lease_tools import counter, until, workers

LEASE_SECONDS = 1
SETTINGS = f"[match]\nlease_seconds = {LEASE_SECONDS}\n"
READERS = 2
SLEEPS = 3  # reads of a reader that outlast its lease


@pytest.mark.parametrize("disk_bytes", [None, "24MiB"], ids=["host alone", "host and disk"])
@pytest.mark.parametrize("rounds", [140, pytest.param(2000, marks=pytest.mark.slow)])
def test_readers_never_see_other_bytes_while_slots_are_used_again(
    tmp_path: Path, disk_bytes: str | None, rounds: int
) -> None:
    newest_file = tmp_path / "newest"
    newest_file.write_bytes(bytes(8))
    with daemon(tmp_path, "8MiB", disk_bytes, settings=SETTINGS) as process:
        process.start()
        seen: Counter[str] = Counter()
        counted: Counter[str] = Counter()
        with workers(("writer", process.address, newest_file)):
            newest = np.memmap(newest_file, np.int64, "r")
            until(lambda: counter(process, "evicted_host") > 0, "the host tier is full")
            written = int(newest[0])
            calls = [
                ("reader", process.address, newest_file, LEASE_SECONDS, rounds, SLEEPS, seed) for seed in range(READERS)
            ]
            with workers(*calls) as readers:
                for reader in readers:
                    said = reader.says()
                    assert isinstance(said, dict)
                    seen.update(said["seen"])
                    counted.update(said["counters"])
            written = int(newest[0]) - written
        evicted = counter(process, "evicted_host")
    print(f"{written} documents written, {evicted} objects evicted, {dict(sorted(seen.items()))}")
    print({name: count for name, count in sorted(counted.items()) if name.startswith("fetch")})
    assert written > 30 and evicted > 300, "there was no pressure"
    assert counted["fetched_shared_bytes"] > 10 << 20 and counted["viewed_blocks"] > 50
    assert all(seen[f"{way}: right"] for way in ("copy", "verify", "views", "layers"))
    assert counted["fetch_lease_over"] > 0, "no reader outlasted its lease"
    assert counted["fetch_stamp_mismatch"] > 0, "no reader met a slot that had been used again"
    assert seen["views: invalid"] and seen["released views: invalid"], "all views were right until the end"
    assert not counted["fetch_corrupt"], "checksums never have to tell what stamps should"


def test_views_of_what_was_dropped_are_invalid_before_anybody_writes_there(tmp_path: Path) -> None:
    """The stamp goes with the copy, not with the bytes of the next one: no reader copies while slots are filled."""
    document = Document(DEMO, 4)
    with daemon(tmp_path, "8MiB") as process:
        process.start()
        with client_of(process, LAYOUTS[DEMO]) as reader, client_of(process, LAYOUTS[DEMO]) as other:
            assert document.put(other) and other.flush(30)
            match = reader.lookup(document.tokens())
            views, leased = reader.fetch(match, views=True), reader.fetch(match)
            assert views.is_valid and is_right(views, document)
            assert other.report(match, block=0, group=0, reason="a test says so")
            assert is_right(views, document), "nobody has written there"
            assert not views.is_valid
            assert not reader.fetch(match, verify=True).plan.tokens and not reader.fetch(match).plan.tokens
            assert leased.is_valid and is_right(leased, document), "a copy stays what it is"
