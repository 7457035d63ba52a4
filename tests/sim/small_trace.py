"""A small trace with sessions, kinds and modes, as a value and as a file."""

from __future__ import annotations

import json
import random
from pathlib import Path

BLOCK_TOKENS = 64


def lines(sessions: int = 12, turns: int = 6, seed: int = 7) -> list[dict[str, object]]:
    """Sessions that share two first blocks and grow by three blocks a turn, interleaved."""
    rng, made = random.Random(seed), []
    for turn in range(turns):
        for session in range(sessions):
            own = [100 + 1000 * session + block for block in range(3 * turn + 1)]
            ids = [0, 1, *own]
            made.append(
                {
                    "timestamp": 60_000 * turn + 1000 * session + rng.randrange(900),
                    "input_length": len(ids) * BLOCK_TOKENS,
                    "output_length": 100,
                    "hash_ids": ids,
                    "session_id": f"s{session}",
                    "turn": turn + 1,
                    "kind": "chat" if session % 3 else "code-agent",
                    "mode": "non-think" if session % 2 else "think-high",
                }
            )
    return made


def written(folder: Path, name: str = "small.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines()))
    return path
