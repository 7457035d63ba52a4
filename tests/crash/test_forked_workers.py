"""A worker that forks keeps its attachment: what its child has of the client is closed, and disturbs nothing.

The parent goes on through shared memory while the child tries everything; and when the parent is killed, the daemon
knows at once, though the child lives on.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from crash_tools import daemon
from lease_tools import state_of, until, workers


def test_a_child_of_a_fork_finds_nothing_and_disturbs_nothing(tmp_path: Path) -> None:
    with daemon(tmp_path, "16MiB") as process:
        process.start()
        with workers(("forking", process.address)) as [worker]:
            child = worker.says()
            parent = worker.says()
            assert child == {
                "attached": False, "connected": False, "views valid": False, "found": 0, "fetched": 0, "viewed": 0,
                "put": False, "flushed": False, "pinned": False, "handed over": False, "taken": False,
                "lanes": 0, "closed": True,
            }  # fmt: skip
            assert isinstance(parent, dict)
            assert parent["right"] >= 20 and parent["attached"] and parent["views valid"]
            assert parent["attaches"] == 1, "the parent's attachment broke"
            assert process.status().attached_workers == 1
            living = worker.says()
            assert isinstance(living, int)
            worker.process.kill()
            until(lambda: process.status().attached_workers == 0, "the daemon knows that the parent is dead")
            assert process.status().staging_bytes == 0
            assert state_of(living) not in "XZ", "the child was to outlive its parent"
            os.kill(living, signal.SIGKILL)
