"""A worker process of its own: attaches, takes a lease and staging, says so, and waits to be killed.

Arguments: attach path, boot epoch, worker id in hex, bytes of staging, a Lookup in hex. It says "ready", or why not.
"""

from __future__ import annotations

import sys
import time

from lane_peer import LanePeer, Refusal

if __name__ == "__main__":
    path, epoch, worker, staging, lookup = sys.argv[1:]
    try:
        lanes = [LanePeer(path, int(epoch), bytes.fromhex(worker)) for _ in range(2)]
        staged = lanes[0].stage(int(staging)) if int(staging) else None
        answer = lanes[1].call("Lookup", bytes.fromhex(lookup)) if lookup else None
    except (Refusal, OSError) as error:
        print(error, flush=True)
    else:
        print(f"ready {answer.lease if answer is not None else 0}", flush=True)
        time.sleep(600)
