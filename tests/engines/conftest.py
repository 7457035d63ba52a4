"""One model, one worker and one cold run a prompt for all tests here: building and prefilling are what costs."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("transformers")
import torch
from engine_memory_store import MemoryStore

from kvstore.engines.transformers import Worker, build_demo_model, demo_layout


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def worker():
    return Worker(build_demo_model(), demo_layout())


@pytest.fixture(scope="session")
def tokens():
    """A long prompt; every test cuts its own from it, so that cold runs are shared."""
    return np.random.default_rng(7).integers(2, 2048, 1400).astype(np.int32)


@pytest.fixture(scope="session")
def suffix():
    return np.random.default_rng(8).integers(2, 2048, 400).astype(np.int32)


@pytest.fixture(scope="session")
def cold(worker):
    """A run without any store, remembered by its prompt."""
    runs = {}

    def run(prompt, count):
        key = (np.asarray(prompt, np.int32).tobytes(), count)
        if key not in runs:
            runs[key] = worker.run(prompt, count)
        return runs[key]

    return run


@pytest.fixture(scope="session")
def _prefilled(worker, tokens):
    store = MemoryStore(worker.layout)
    worker.run(tokens[:1000], 1, store)
    return store


@pytest.fixture
def prefilled(_prefilled):
    """Rows and states of one run of the first 1,000 tokens, every boundary a resume point; a copy for each test."""
    return replace(_prefilled, rows=dict(_prefilled.rows), states=dict(_prefilled.states), puts=[], disagreements=[])


@pytest.fixture(scope="session")
def same():
    """Asserts that two runs agree in tokens, and in every bit of every logit."""

    def check(one, other):
        assert one.is_same_as(other), f"max {(one.logits - other.logits).abs().max()}"

    return check
