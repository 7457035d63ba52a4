"""Blocks whose slots lie at one distance: they are copied, or seen, as one array instead of block by block."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class BlockRun(NamedTuple):
    first: int  # index of its first object
    objects: int
    page: int  # of the first object's slot
    step: int  # pages from one object's slot to the next; may be negative


def block_runs(pages: NDArray[np.int64], region_pages: int) -> Iterator[BlockRun]:
    """The objects at these pages (one slot each), in order, as few runs, each within one region.

    Slots are given out one after another, so that a prefix is a run a region as a rule.

    >>> [tuple(run) for run in block_runs(np.array([4, 6, 8, 9, 1]), 1000)]
    [(0, 3, 4, 2), (3, 2, 9, -8)]
    """
    count = len(pages)
    steps = np.diff(pages)
    regions = pages // region_pages
    steps[regions[1:] != regions[:-1]] = 0  # no two objects have the same slot: nothing joins these
    changes = np.flatnonzero(steps[1:] != steps[:-1]) + 1
    bounds = [0, *changes.tolist(), len(steps)]
    first = 0
    for start, end in pairwise(bounds):  # steps [start, end) are equal: blocks start to end
        if end <= first or start == end:
            continue
        step = int(steps[start])
        if step:
            yield BlockRun(first, end + 1 - first, int(pages[first]), step)
            first = end + 1
        else:
            for index in range(first, end):
                yield BlockRun(index, 1, int(pages[index]), 0)
            first = end
    for index in range(first, count):
        yield BlockRun(index, 1, int(pages[index]), 0)
