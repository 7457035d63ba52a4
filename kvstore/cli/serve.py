"""`kvstore serve`: the daemon. One ready line on standard error; with --json one object on standard output."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from kvstore.config import load_config
from kvstore.core.keys import PAGE_BYTES, Tier
from kvstore.core.sizes import format_size
from kvstore.daemon.opening import open_daemon
from kvstore.daemon.server import Daemon, server_version
from kvstore.daemon.signals import StopSignals
from kvstore.store.objects import TierState
from kvstore.tiers.huge_pages import why_no_huge_pages

log = logging.getLogger("kvstore.daemon")


def serve_command(
    config: Annotated[Path | None, typer.Option(help="TOML file; the flags override it")] = None,
    listen: Annotated[str | None, typer.Option(help="unix:PATH or HOST:PORT on the loopback")] = None,
    host_bytes: Annotated[str | None, typer.Option(help="host memory, such as 4GiB or 25%")] = None,
    disk: Annotated[str | None, typer.Option(metavar="DIR", help="folder of the disk tier; without it none")] = None,
    disk_bytes: Annotated[str | None, typer.Option(help="disk space, such as 50GiB or 10%")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object when ready")] = False,
) -> None:
    """Run the daemon until SIGTERM, which finishes what is in flight; a second one ends at once."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold prompts
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    flags = {"listen": listen, "host.bytes": host_bytes, "disk.folder": disk, "disk.bytes": disk_bytes}
    settings = load_config(config, flags)
    with StopSignals() as signals:
        daemon = open_daemon(settings)
        _announce(daemon, as_json)
        signals.serve(daemon, settings.drain_seconds)
    _leave()


def _announce(daemon: Daemon, as_json: bool) -> None:
    facts = ready_facts(daemon)
    if daemon.address.path is None:
        log.warning("every user of this machine can connect to %s: a unix: socket is open to one", facts["address"])
    print(_ready_line(facts), file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps(facts), flush=True)


def ready_facts(daemon: Daemon) -> dict[str, object]:
    """What the operator got, as one JSON-ready object."""
    state = daemon.store.status()
    return {
        "address": daemon.address.target,
        "pid": os.getpid(),
        "version": server_version(),
        "boot_epoch": daemon.store.boot_epoch,
        "attach": str(daemon.attach_path or ""),
        "huge_pages": _huge_pages(state.tiers, daemon.store.region_pages * PAGE_BYTES),
        "tiers": [
            {
                "tier": tier.tier.value,
                "capacity_bytes": tier.capacity_bytes,
                "ready_bytes": tier.ready_bytes,
                "huge_bytes": tier.huge_bytes,
                "objects": tier.objects,
                "trouble": tier.trouble,
            }
            for tier in state.tiers
        ],
    }


def _ready_line(facts: dict[str, object]) -> str:
    tiers = facts["tiers"]
    assert isinstance(tiers, list)
    words = []
    for tier in tiers:
        size = format_size(tier["capacity_bytes"])
        kept = f", {tier['objects']} objects kept" if tier["objects"] else ""
        filling = "" if tier["ready_bytes"] >= tier["capacity_bytes"] else f", {format_size(tier['ready_bytes'])} ready"
        trouble = f", in trouble: {tier['trouble']}" if tier["trouble"] else ""
        words.append(f"{tier['tier']} {size}{filling}{kept}{trouble}")
    words.append(str(facts["huge_pages"]))
    return f"kvstore {facts['version']} ready on {facts['address']}: {'; '.join(words)}"


def _huge_pages(tiers: Sequence[TierState], region_bytes: int) -> str:
    """What pages host memory has so far; the rest of it is populated while the daemon serves."""
    huge = sum(tier.huge_bytes for tier in tiers if tier.tier is Tier.HOST)
    if not huge:
        return f"no huge pages: {why_no_huge_pages(region_bytes)}"
    ready = sum(tier.ready_bytes for tier in tiers if tier.tier is Tier.HOST)
    return f"huge pages: {format_size(huge)} of {format_size(ready)}"


def _leave() -> None:
    """End the process now: the store is closed, and a call stuck in its thread must not hold us."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
