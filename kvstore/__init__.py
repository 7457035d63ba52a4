"""A storage daemon for the KV cache of DeepSeek-V4-style models: what inference workers import.

with kvstore.connect("unix:/run/kvstore/kvstore.sock", layout=kvstore.layouts.v4_flash()) as store: ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.core import errors
from kvstore.core import presets as layouts
from kvstore.core.layout import ModelLayout
from kvstore.core.match import Hints

if TYPE_CHECKING:
    from kvstore.client.client import Client
    from kvstore.client.connect import connect
    from kvstore.client.settings import Bounds, Timeouts

__all__ = ["Bounds", "Client", "Hints", "ModelLayout", "Timeouts", "connect", "errors", "layouts"]


def __getattr__(name: str) -> object:
    """The client is imported when asked for: grpc and numpy take 0.2 s, and this package is imported by every process
    of the daemon, the simulator and each small command too."""
    if name == "connect":
        from kvstore.client.connect import connect  # noqa: PLC0415

        return connect
    if name == "Client":
        from kvstore.client.client import Client  # noqa: PLC0415

        return Client
    if name in ("Bounds", "Timeouts"):
        from kvstore.client import settings  # noqa: PLC0415

        return getattr(settings, name)
    raise AttributeError(f"module 'kvstore' has no attribute {name!r}")
