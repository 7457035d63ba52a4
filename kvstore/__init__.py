"""A storage daemon for the KV cache of DeepSeek-V4-style models: what inference workers import.

with kvstore.connect("unix:/run/kvstore/kvstore.sock", layout=kvstore.layouts.v4_flash()) as store: ...
"""

from kvstore.client.client import Client
from kvstore.client.connect import connect
from kvstore.client.settings import Bounds, Timeouts
from kvstore.core import errors
from kvstore.core import presets as layouts
from kvstore.core.layout import ModelLayout
from kvstore.core.match import Hints, InferenceMode, PlanKind, SessionEvent

__all__ = [
    "Bounds",
    "Client",
    "Hints",
    "InferenceMode",
    "ModelLayout",
    "PlanKind",
    "SessionEvent",
    "Timeouts",
    "connect",
    "errors",
    "layouts",
]
