"""A DeepSeek-V4 worker on transformers: CPU, one request at a time, exact.

    model.py    the demo's seeded random model and its layout
    cache.py    the model's cache in V4's own formats, taken apart into rows and states and put together again
    stores.py   what the worker needs of a store
    request.py  one request on its way, and what it gave
    handoff.py  the bytes of an exact cache at any token
    worker.py   lookup, fetch, prefill, decode, canonical completion, put; hand over, take over

Needs the extra `demo` (torch and transformers); importing it without them says so.
"""

try:
    import torch  # noqa: F401 - asked for here, so that a missing one is told in a sentence
    import transformers  # noqa: F401
except ImportError as missing:
    raise ImportError(
        f"the transformers worker needs {missing.name}, which is not installed: pip install 'kvstore[demo]'",
        name=missing.name,
    ) from missing

from kvstore.engines.transformers.cache import CacheForm, Snapshot
from kvstore.engines.transformers.model import build_demo_model, demo_config, demo_layout
from kvstore.engines.transformers.request import HandoffOutcome, Request, Run
from kvstore.engines.transformers.stores import HandoffStore, Store
from kvstore.engines.transformers.worker import Worker

__all__ = [
    "CacheForm", "HandoffOutcome", "HandoffStore", "Request", "Run", "Snapshot", "Store", "Worker", "build_demo_model",
    "demo_config", "demo_layout",
]  # fmt: skip
