"""One reading worker of `crowd.py`: fetches a prefix again and again into its own buffers. Driven over pipes.

python bench/reader.py ADDRESS        commands and answers are one JSON object a line
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
from shapes import BLOCK_TOKENS, aligned_bytes, flash_rows, random_tokens

import kvstore


def main(address: str) -> None:
    layout = flash_rows()
    print(json.dumps({"ready": True}), flush=True)
    for line in iter(sys.stdin.readline, ""):
        asked = json.loads(line)
        before = page_table_bytes()
        began = time.perf_counter()
        with kvstore.connect(address, layout=layout) as client:
            attached = time.perf_counter() - began
            blocks = asked["blocks"]
            tokens = random_tokens(blocks * BLOCK_TOKENS + 1, asked["seed"])
            part, parts = asked["share"]
            mine = blocks * (part + 1) // parts - blocks * part // parts
            into = aligned_bytes(mine * layout.rows.nbytes).reshape(mine, -1)
            seconds, ends = [], time.perf_counter() + asked["seconds"]
            while not seconds or time.perf_counter() < ends:
                start = time.perf_counter()
                with client.lookup(tokens) as match, client.fetch(match, into=into, share=(part, parts)) as fetched:
                    assert fetched.plan.tokens == blocks * BLOCK_TOKENS, "the prefix is not there whole"
                seconds.append(time.perf_counter() - start)
            answer = {
                "seconds": seconds,
                "bytes": client.counters.get("fetched_shared_bytes", 0),
                "streamed": client.counters.get("fetched_bytes", 0),
                "attach_seconds": attached,
                "page_table_bytes": page_table_bytes() - before,
                "first_byte": int(np.bitwise_xor.reduce(into[:, ::4096], axis=None)),
            }
        print(json.dumps(answer), flush=True)


def page_table_bytes() -> int:
    found = re.search(r"VmPTE:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


if __name__ == "__main__":
    main(sys.argv[1])
