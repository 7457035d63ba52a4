"""What a day at work looks like: several engines, an open loop of turns on long prompts, one daemon.

    python bench/production.py [--json] [--quick] [--rate 40] [--engines 3]

40 turns a second in all, each on a prompt of about 100,000 tokens (782 blocks) of which about 95 % are stored; each
turn looks up, fetches and puts what is new. Sections are those of V4-Flash at 1/64 of their size, so that memory holds
them and the two cores are the store's and not memcpy's; the number of blocks, hashes and descriptors is the real one.
Turns start at Poisson times drawn beforehand. Reported beside the latencies: how much of one core the daemon's process
used (its interpreter's share is at most that) and how much of the time its one lock was held.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from contextlib import ExitStack
from pathlib import Path

from children import Answer, child
from harness import Against, Bench, main
from processes import Daemon, running_daemon

BASE_TOKENS = 81_920  # shared by all; sessions grow from here to 120,000
TURN_TOKENS = 5_120
TURNS_A_SESSION = 8
SESSIONS = 24  # an engine
LOOKUP_P99_MS = 10.0
BLOCKING_CALLS = 2
TICKS = os.sysconf("SC_CLK_TCK")


def collect(bench: Bench) -> None:
    rate, engines = bench.options.rate, bench.options.engines
    seconds = 15.0 if bench.is_quick else 60.0
    with running_daemon("3GiB") as daemon, ExitStack() as stack:
        running = [stack.enter_context(child("engine.py", daemon.address)) for _ in range(engines)]
        with bench.step("putting the shared base"):
            running[0].ask({"base": BASE_TOKENS})
        before = usage(daemon)
        with bench.step(f"{rate:g} turns a second by {engines} engines for {seconds:g} s"):
            for number, process in enumerate(running):
                process.tell(
                    {
                        "seed": bench.seed + number, "base_tokens": BASE_TOKENS, "turn_tokens": TURN_TOKENS,
                        "turns_a_session": TURNS_A_SESSION, "sessions": SESSIONS, "rate": rate / engines,
                        "seconds": seconds,
                    },
                )  # fmt: skip
            answers = [process.hear() for process in running]
        after = usage(daemon)
    report(bench, answers, before, after)


def report(bench: Bench, answers: list[Answer], before: Usage, after: Usage) -> None:
    def joined(name: str) -> list[float]:
        return sorted(value for answer in answers for value in answer[name])

    for answer in answers:
        pairs = zip(answer["lookup"], answer["hashing"], strict=True)
        answer["asking"] = [whole - hashing for whole, hashing in pairs]
    turns, wall = len(joined("lookup")), after.at - before.at
    most = Against.VALUE_AT_MOST
    bench.row("turns a second, started", turns / wall, "1/s", runs=turns)
    bench.row("prompt tokens found", 100 * statistics.mean(joined("reuse")), "%", runs=turns)
    for name, what in (
        ("lookup", "lookup, hashing included"), ("hashing", "hashing in it"), ("asking", "lookup without it"),
        ("fetch", "fetch of 95 %"),
        ("late", "from due to fetched"),
    ):  # fmt: skip
        values = joined(name)
        bench.row(f"{what}, p50", values[len(values) // 2], "ms", runs=turns)
        target = LOOKUP_P99_MS if name == "lookup" else None
        bench.row(f"{what}, p99", values[len(values) * 99 // 100], "ms", target=target, against=most, runs=turns)
    calls = joined("calls")
    bench.row("blocking calls before the first token, p99", calls[len(calls) * 99 // 100], "calls",
              target=BLOCKING_CALLS, against=most, runs=turns)  # fmt: skip
    bench.row("daemon's processor time", 100 * (after.cpu - before.cpu) / wall, "% of a core", runs=1)
    bench.row("store's lock held", 100 * (after.held - before.held) / wall, "% of the time", runs=1)
    bench.row("store's lock waited for", 100 * (after.waited - before.waited) / wall, "% of the time", runs=1)
    bench.row("longest hold of the lock", 1e3 * after.longest, "ms", runs=1)
    shed = sum(answer["counters"].get("puts_shed", 0) for answer in answers)
    bench.note(f"{shed} of {turns} puts were shed; counters of one engine: {answers[0]['counters']}")


class Usage:
    """What the daemon has used so far. Seconds."""

    def __init__(self, at: float, cpu: float, held: float, waited: float, longest: float) -> None:
        self.at, self.cpu, self.held, self.waited, self.longest = at, cpu, held, waited, longest


def usage(daemon: Daemon) -> Usage:
    status = daemon.status()
    fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) / TICKS
    return Usage(
        time.perf_counter(), cpu, status.lock_held_seconds, status.lock_waited_seconds, status.lock_longest_seconds
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rate", type=float, default=40.0, help="turns a second, all engines together")
    parser.add_argument("--engines", type=int, default=3, help="engine processes")


if __name__ == "__main__":
    main("production", collect, doc=__doc__, add_arguments=add_arguments)
