"""`kvstore status`: what a running daemon holds and how it fares."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from kvstore.client.arguments import checked_address
from kvstore.config import DEFAULT_LISTEN
from kvstore.core.keys import Tier
from kvstore.core.sizes import format_size
from kvstore.rpc.enums import TIER
from kvstore.rpc.generated import admin_pb2 as pb
from kvstore.rpc.operators import fetch_status

TIMEOUT_SECONDS = 5.0


def status_command(
    connect: Annotated[str, typer.Option(metavar="ADDRESS", help="the daemon's --listen")] = DEFAULT_LISTEN,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Show a daemon's tiers, namespaces and counters."""
    status = fetch_status(checked_address(connect), TIMEOUT_SECONDS)
    if as_json:
        typer.echo(json.dumps(status_facts(status)))
    else:
        _print(Console(), connect, status)


def status_facts(status: pb.StatusResponse) -> dict[str, object]:
    """Everything the daemon said, JSON-ready. Bytes, seconds; speeds null until measured."""
    return {
        "version": status.version,
        "boot_epoch": status.boot_epoch,
        "uptime_seconds": status.uptime_seconds,
        "is_draining": status.is_draining,
        "tiers": [
            {
                "tier": TIER.to_core(tier.tier).value,
                "capacity_bytes": tier.capacity_bytes,
                "ready_bytes": tier.ready_bytes,
                "used_bytes": tier.used_bytes,
                "huge_bytes": tier.huge_bytes,
                "objects": tier.objects,
                "is_writable": tier.is_writable,
                "trouble": tier.trouble,
                "read_bytes_per_second": tier.read_bytes_per_second or None,
                "write_bytes_per_second": tier.write_bytes_per_second or None,
            }
            for tier in status.tiers
        ],
        "namespaces": [
            {
                "id": space.namespace_id.hex(),
                "model": space.model,
                "revision": space.revision,
                "numerics": space.numerics,
                "rows": space.rows,
                "states": space.states,
                "host_bytes": space.host_bytes,
                "curve": [
                    {"host_bytes": point.host_bytes, "token_hits": point.token_hits, "work_hits": point.work_hits}
                    for point in space.curve
                ],
            }
            for space in status.namespaces
        ],
        "leases": status.leases,
        "pins": status.pins,
        "queued_copies": status.queued_copies,
        "attached_workers": status.attached_workers,
        "staging_bytes": status.staging_bytes,
        "handoffs": status.handoffs,
        "handoff_bytes": status.handoff_bytes,
        "lock_held_seconds": status.lock_held_seconds,
        "lock_waited_seconds": status.lock_waited_seconds,
        "lock_longest_seconds": status.lock_longest_seconds,
        "counters": dict(sorted(status.counters.items())),
    }


def _print(console: Console, address: str, status: pb.StatusResponse) -> None:
    draining = ", draining" if status.is_draining else ""
    console.print(f"kvstore {status.version} on {address}, up {status.uptime_seconds:.0f} s{draining}", highlight=False)
    tiers = Table("tier", "capacity", "ready", "used", "objects", "read/s", "write/s", "trouble")
    for tier in status.tiers:
        tiers.add_row(
            TIER.to_core(tier.tier).value,
            format_size(tier.capacity_bytes),
            format_size(tier.ready_bytes),
            format_size(tier.used_bytes),
            str(tier.objects),
            _speed(tier.read_bytes_per_second),
            _speed(tier.write_bytes_per_second),
            tier.trouble or ("" if tier.is_writable else "read-only"),
        )
    console.print(tiers)
    if status.namespaces:
        spaces = Table("model", "revision", "numerics", "rows", "states", "in host memory")
        for space in status.namespaces:
            host = format_size(space.host_bytes)
            spaces.add_row(space.model, space.revision, space.numerics, str(space.rows), str(space.states), host)
        console.print(spaces)
        host_bytes = sum(tier.capacity_bytes for tier in status.tiers if TIER.to_core(tier.tier) is Tier.HOST)
        for space in status.namespaces:
            if space.curve:
                console.print(f"{space.model} {space.revision}: {_gains(space, host_bytes)}", highlight=False)
    console.print(f"{status.leases} leases, {status.pins} pins, {status.queued_copies} copies queued", highlight=False)
    huge_bytes = sum(tier.huge_bytes for tier in status.tiers)
    if huge_bytes:
        console.print(f"{format_size(huge_bytes)} of host memory in huge pages", highlight=False)
    if status.attached_workers or status.staging_bytes:
        staged = format_size(status.staging_bytes)
        console.print(f"{status.attached_workers} workers attached, {staged} of staging", highlight=False)
    if status.handoff_bytes:
        console.print(f"{status.handoffs} handoffs in {format_size(status.handoff_bytes)}", highlight=False)
    console.print(
        f"lock: held for {status.lock_held_seconds:.2f} s since start, for at most "
        f"{1e3 * status.lock_longest_seconds:.1f} ms at once; waited for {status.lock_waited_seconds:.2f} s",
        highlight=False,
    )
    told = {name: count for name, count in sorted(status.counters.items()) if count}
    if told:
        counters = Table("counter", "since start")
        for name, count in told.items():
            counters.add_row(name, str(count))
        console.print(counters)


def _gains(space: pb.NamespaceStatus, host_bytes: int) -> str:
    """What more and less host memory would have done to the share of prompt tokens whose rows are there.

    The curve has points at multiples of the configured size, from which `host_bytes` differs by its rounding.
    """
    points = sorted(space.curve, key=lambda point: point.host_bytes)
    now = min(points, key=lambda point: abs(point.host_bytes - host_bytes))
    told = [f"rows of {now.token_hits:.1%} of its prompt tokens fit host memory"]
    for point in points:
        change = point.host_bytes - now.host_bytes
        if point.host_bytes in (now.host_bytes // 2, 2 * now.host_bytes, 4 * now.host_bytes):
            points_more = 100 * (point.token_hits - now.token_hits)
            told.append(f"{format_size(abs(change))} {'more' if change > 0 else 'less'}: {points_more:+.1f} points")
    return "; ".join(told)


def _speed(bytes_per_second: float) -> str:
    return format_size(int(bytes_per_second)) if bytes_per_second else "-"
