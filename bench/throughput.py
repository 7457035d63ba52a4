"""How fast bytes go in and out of a daemon, on one host and from elsewhere, and how fast a million tokens are found.

python bench/throughput.py [--json] [--quick] [--skip-million] [--only PART ...]

shared    copies, views and puts of a worker on the daemon's host, beside memcpy (shared.py)
crowd     eight processes' shares of one prefix, four readers at once (crowd.py)
streams   fetches and puts of a worker elsewhere, beside raw grpcio (streams.py)
lookups   the 8,192 hashes of a million tokens, descriptors, the lock (lookups.py)
cold      a prefix of 512 MB that only the disk has, beside four-thread preadv; layers on the way (cold.py)
attach    time and page tables of attaching (crowd.py)
million   a million tokens of V4-Flash, put, found, fetched, compared; not in a quick run (million.py)
"""

from __future__ import annotations

import argparse

from cold import cold
from crowd import attaching, crowd
from harness import Bench, main
from lookups import lookups
from million import million
from processes import running_daemon
from shared import shared
from streams import streaming

PARTS = ("shared", "crowd", "streams", "lookups", "cold", "attach", "million")


def collect(bench: Bench) -> None:
    parts = bench.options.only or PARTS
    with running_daemon("2GiB") as daemon:
        for name, part in (("shared", shared), ("crowd", crowd), ("streams", streaming), ("lookups", lookups)):
            if name in parts:
                part(bench, daemon)
    is_core = bench.is_quick and not bench.options.only  # without the parts that have daemons of their own
    if "cold" in parts and not is_core:
        cold(bench)
    if "attach" in parts and not is_core:
        attaching(bench)
    if "million" in parts and not bench.is_quick and not bench.options.skip_million:
        with running_daemon("1GiB", "6GiB") as daemon:
            million(bench, daemon)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--skip-million", action="store_true", help="leave out the million tokens (3.7 GB of disk)")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts only")


if __name__ == "__main__":
    main("throughput", collect, doc=__doc__, add_arguments=add_arguments)
