"""`kvstore policy`: what decides about eviction in a running daemon; with a name or an option, something else does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated

import typer

from kvstore.client.arguments import checked_address
from kvstore.config import DEFAULT_LISTEN
from kvstore.rpc.generated import admin_pb2 as pb
from kvstore.rpc.operators import change_policy, fetch_policy

TIMEOUT_SECONDS = 10.0


def policy_command(
    name: Annotated[str | None, typer.Argument(help="evict by this policy from now on, such as lru or arc")] = None,
    connect: Annotated[str, typer.Option(metavar="ADDRESS", help="the daemon's --listen")] = DEFAULT_LISTEN,
    keep_seconds: Annotated[
        float | None, typer.Option(help="do not evict what was used so lately for what is new; 0: admit all")
    ] = None,
    placement: Annotated[str | None, typer.Option(help="where states are taken, such as ends+junctions")] = None,
    replay: Annotated[
        bool | None, typer.Option("--replay/--no-replay", help="whether a missing state may be rebuilt")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Show, or change until the daemon ends, what decides about eviction, admission and states."""
    address = checked_address(connect)
    request = pb.SetPolicyRequest(policy=name, keep_seconds=keep_seconds, placement=placement, replay=replay)
    if request == pb.SetPolicyRequest():
        now = fetch_policy(address, TIMEOUT_SECONDS)
        if as_json:
            typer.echo(json.dumps(policy_facts(now)))
        else:
            typer.echo("\n".join(shown(now)))
        return
    changed = change_policy(address, request, TIMEOUT_SECONDS)
    if as_json:
        typer.echo(json.dumps({"before": policy_facts(changed.before), "now": policy_facts(changed.now)}))
    else:
        typer.echo("\n".join(told(changed)))


def policy_facts(found: pb.PolicyInCharge) -> dict[str, object]:
    """Everything the daemon said, JSON-ready. Seconds; objects by number."""
    return {
        "policy": found.policy,
        "keep_seconds": found.keep_seconds,
        "placement": found.placement,
        "replay": found.replay,
        "objects": found.objects,
        "left_to_move": found.left_to_move,
        "is_adaptive": found.is_adaptive,
        "scores": [
            {
                "policy": score.policy,
                "keep_seconds": score.keep_seconds,
                "resumed_share": score.resumed_share,
                "is_in_charge": score.is_in_charge,
            }
            for score in found.scores
        ],
        "followed": found.followed,
        "sample_rate": found.sample_rate,
        "last_change": found.last_change,
    }


def shown(now: pb.PolicyInCharge) -> Iterator[str]:
    yield from (f"{key:13} {value}" for key, value in _settings(now).items())
    yield _progress(now)
    yield from _ghosts(now)


def _ghosts(now: pb.PolicyInCharge) -> Iterator[str]:
    """What other policies and admission would resume."""
    yield (
        "the store chooses by itself" if now.is_adaptive else "it stays: kvstore policy adaptive lets the store choose"
    )
    if now.last_change:
        yield f"last choice: {now.last_change}"
    if not now.scores:
        return
    yield f"ghost stores follow {now.sample_rate:.1%} of the sessions, {now.followed} lookups so far; they would resume"
    best = now.scores[0].resumed_share
    for score in now.scores:
        name = score.policy + (f", keep {score.keep_seconds:g} s" if score.keep_seconds else "")
        regret = "the most" if score.resumed_share == best else f"{100 * (best - score.resumed_share):.1f} points less"
        yield f"  {score.resumed_share:6.1%}  {name}, {regret}" + (", in charge" if score.is_in_charge else "")


def told(changed: pb.SetPolicyResponse) -> Iterator[str]:
    """What is and what was; what to write into the config, where anything changed."""
    before, now = _settings(changed.before), _settings(changed.now)
    for key, value in now.items():
        yield f"{key:13} {value}" + (f", was {before[key]}" if before[key] != value else "")
    yield _progress(changed.now)
    keys = [f"[{_SECTIONS[key]}] {key} = {_toml(value)}" for key, value in now.items() if before[key] != value]
    if keys:
        yield f"this ends with the daemon: to keep it, put into its config {', '.join(keys)}"
    else:
        yield "nothing changed: it was so before"


_SECTIONS = {"policy": "evict", "keep_seconds": "evict", "placement": "match", "replay": "match"}


def _settings(found: pb.PolicyInCharge) -> dict[str, str]:
    """By their keys in the config, values as the config has them but for quotes."""
    return {
        "policy": found.policy,
        "keep_seconds": f"{found.keep_seconds:g}",
        "placement": found.placement,
        "replay": "true" if found.replay else "false",
    }


def _toml(value: str) -> str:
    is_text = value not in ("true", "false") and not value.replace(".", "").replace("e+", "").isdecimal()
    return f'"{value}"' if is_text else value


def _progress(now: pb.PolicyInCharge) -> str:
    if not now.left_to_move:
        return f"it ranks all {now.objects} objects"
    return f"{now.left_to_move} of {now.objects} objects are still ranked by the policy before: ask again"
