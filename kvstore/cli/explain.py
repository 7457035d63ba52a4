"""`kvstore explain`: why a lookup got less than its prompt, in words; what it found; what would be evicted next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kvstore.cli.explain_facts import explain_facts
from kvstore.cli.explain_words import told
from kvstore.client.arguments import checked_address
from kvstore.config import DEFAULT_LISTEN
from kvstore.core.errors import InvalidInput
from kvstore.core.keys import HASH_BYTES
from kvstore.rpc.generated import admin_pb2 as pb
from kvstore.rpc.operators import fetch_explanation

TIMEOUT_SECONDS = 5.0


def explain_command(
    connect: Annotated[str, typer.Option(metavar="ADDRESS", help="the daemon's --listen")] = DEFAULT_LISTEN,
    session: Annotated[str, typer.Option(help="of this session; else of whoever looked up last")] = "",
    hashes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="prefix hashes of a chain from block 0: hex, one a line, or 32 bytes each"),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=0, help="of the chain; 0: its blocks and one token")] = 0,
    lookups: Annotated[int, typer.Option(min=1, max=64, help="so many sessions' last lookups")] = 1,
    objects: Annotated[int, typer.Option(min=0, max=1024, help="describe so many objects of a lookup")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Say why the last lookup of a session missed, how its objects are classed and ranked, and what would go next."""
    request = pb.ExplainRequest(
        session=session,
        hashes=b"" if hashes is None else read_hashes(hashes),
        prompt_tokens=prompt_tokens,
        max_objects=objects,
        max_lookups=lookups,
    )
    answer = fetch_explanation(checked_address(connect), request, TIMEOUT_SECONDS)
    if as_json:
        typer.echo(json.dumps(explain_facts(answer)))
    else:
        for line in told(answer):
            typer.echo(line)


def read_hashes(path: Path) -> bytes:
    """Packed hashes. Raises InvalidInput with the line where a text file breaks off."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read ({error.strerror}): name a file of prefix hashes") from error
    if not raw.strip():
        raise InvalidInput(f"{path} has no hashes: write 64 hex digits a line, or {HASH_BYTES} bytes a block")
    try:
        lines = raw.decode("ascii").split("\n")
    except UnicodeDecodeError:
        lines = []
    if not lines or not _is_hex(lines[0]):
        if len(raw) % HASH_BYTES:
            raise InvalidInput(f"{path} has {len(raw)} bytes: write {HASH_BYTES} a block, or 64 hex digits a line")
        return raw
    packed = bytearray()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if not _is_hex(line):
            raise InvalidInput(f"{path}:{number}: this is no prefix hash: write {2 * HASH_BYTES} hex digits")
        packed += bytes.fromhex(line.strip())
    return bytes(packed)


def _is_hex(line: str) -> bool:
    text = line.strip()
    if len(text) != 2 * HASH_BYTES:
        return False
    return all(digit in "0123456789abcdefABCDEF" for digit in text)
