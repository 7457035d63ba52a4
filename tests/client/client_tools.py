"""What the client's tests share: arrays of a layout, waiting without a fixed sleep."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kvstore.core.layout import Group, ModelLayout


def arrays_of(group: Group, rng: np.random.Generator, blocks: int | None) -> dict[str, np.ndarray]:
    """Random component arrays; of a state where `blocks` is None."""
    arrays = {}
    for name in group.components():
        sections = [section for section in group.sections if section.component == name]
        shape = (len(sections), sections[0].nbytes)
        arrays[name] = rng.integers(0, 256, shape if blocks is None else (blocks, *shape), dtype=np.uint8)
    return arrays


def sample(layout: ModelLayout, blocks: int, seed: int = 0, states: tuple[int, ...] | None = None):
    """Tokens with one beyond the last block, rows of all blocks, and states at the given boundaries (default: all)."""
    rng = np.random.default_rng(seed)
    bt = layout.block_tokens
    tokens = rng.integers(0, 1000, blocks * bt + 1, dtype=np.int32)
    rows = arrays_of(layout.rows, rng, blocks)
    at = tuple((index + 1) * bt for index in range(blocks)) if states is None else states
    snapshots = {} if layout.state is None else {tokens_at: arrays_of(layout.state, rng, None) for tokens_at in at}
    return tokens, rows, snapshots


def assert_rows(blocks, rows, count: int) -> None:
    for name, array in rows.items():
        np.testing.assert_array_equal(blocks.rows[name], array[:count])


def assert_state(blocks, state) -> None:
    for name, array in state.items():
        np.testing.assert_array_equal(blocks.state[name], array)


def until(fact: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for a fact; the limit only ends a test that has already failed."""
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def stop(process: subprocess.Popen) -> None:
    """SIGSTOP, felt by every thread of it: the signal's sender returns before that."""
    process.send_signal(signal.SIGSTOP)
    tasks = Path(f"/proc/{process.pid}/task")
    until(lambda: all(_state(task) == "T" for task in tasks.iterdir()))


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]
