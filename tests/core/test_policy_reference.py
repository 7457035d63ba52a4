"""Flat blocks, the same requests through libCacheSim: an order is the published algorithm, not something like it.

Not compared: `lfu` (libCacheSim's LFUDA adds the age at each hit, ours once, as published: the rank is the floor at the
last use plus all uses, which is GDSF with equal sizes and is compared as that), `slru` (it has four segments there),
`hazard`, `tlru` and `ttl` (not there).
"""

from __future__ import annotations

import pytest
from policy_world import FlatCache, scan_trace, shifting_trace, zipf_trace

from kvstore.core.policies.arc import ARC
from kvstore.core.policies.gdsf import GDSF
from kvstore.core.policies.lfu import LFU
from kvstore.core.policies.lru import LRU
from kvstore.core.policies.s3fifo import S3FIFO
from kvstore.core.policy import Policy

libcachesim = pytest.importorskip("libcachesim", reason="no wheel of libcachesim for this machine")

OBJECTS = 3000
REQUESTS = 20_000
TRACES = {
    "zipf": zipf_trace(REQUESTS, OBJECTS),
    "scan": scan_trace(REQUESTS, OBJECTS),
    "shifting": shifting_trace(REQUESTS, OBJECTS),
}
REFERENCES = {"LRU": LRU, "ARC": ARC, "S3FIFO": S3FIFO, "GDSF": GDSF}
TOLERANCE = 0.005  # of the requests; measured: lru equal, the others within 0.0005, gdsf 0.002


def reference(name: str, blocks: int, trace: list[int]) -> float:
    cache = getattr(libcachesim, name)(cache_size=blocks, hashpower=16)
    request = libcachesim.Request()
    request.obj_size = 1
    hits = 0
    for item in trace:
        request.obj_id = item + 1
        hits += cache.get(request)
    return hits / len(trace)


@pytest.mark.parametrize("blocks", [100, 300, 900])
@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("name", REFERENCES)
def test_an_order_hits_as_often_as_libcachesims(name: str, trace: str, blocks: int) -> None:
    policy: Policy = REFERENCES[name]()
    ours = FlatCache(policy, blocks).play(TRACES[trace])
    assert ours == pytest.approx(reference(name, blocks, TRACES[trace]), abs=TOLERANCE)


def test_lru_is_libcachesims_to_the_request() -> None:
    trace = TRACES["zipf"]
    assert FlatCache(LRU(), 300).play(trace) == reference("LRU", 300, trace)


def test_lfu_with_ageing_is_gdsf_where_all_cost_and_weigh_the_same() -> None:
    trace = TRACES["shifting"]
    assert FlatCache(LFU(), 300).play(trace) == FlatCache(GDSF(), 300).play(trace)
