"""Core enums <-> protobuf enums. Members have the same names; the wire's carry a prefix and an UNSPECIFIED = 0."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Generic, TypeVar

from kvstore.core.errors import InvalidInput
from kvstore.core.keys import Tier
from kvstore.core.layout import GroupKind, LayerKind
from kvstore.core.match import InferenceMode, MissReason, PlanKind, SessionEvent
from kvstore.core.reserve import Durability, PutStatus, ReserveStatus
from kvstore.rpc.generated import kvstore_pb2 as pb

Core = TypeVar("Core", bound=Enum)
Wire = TypeVar("Wire", bound=int)


class EnumPairs(Generic[Core, Wire]):
    """One enum in both spellings."""

    def __init__(self, name: str, pairs: Mapping[Core, Wire]) -> None:
        self._name = name
        self._to_wire = dict(pairs)
        self._to_core = {wire: core for core, wire in pairs.items()}

    def to_wire(self, member: Core) -> Wire:
        return self._to_wire[member]

    def to_core(self, value: Wire) -> Core:
        """Raises InvalidInput for a value that this version does not know, and for UNSPECIFIED."""
        member = self._to_core.get(value)
        if member is None:
            known = ", ".join(str(core.name) for core in self._to_wire)
            raise InvalidInput(f"{int(value)} is no {self._name}: send one of {known}")
        return member


LAYER_KIND = EnumPairs("layer kind", {kind: pb.LayerKind.Value(f"LAYER_KIND_{kind.name}") for kind in LayerKind})
GROUP_KIND = EnumPairs("group kind", {kind: pb.GroupKind.Value(f"GROUP_KIND_{kind.name}") for kind in GroupKind})
TIER = EnumPairs("tier", {tier: pb.Tier.Value(f"TIER_{tier.name}") for tier in Tier})
MODE = EnumPairs(
    "inference mode", {mode: pb.InferenceMode.Value(f"INFERENCE_MODE_{mode.name}") for mode in InferenceMode}
)
PLAN_KIND = EnumPairs("plan kind", {kind: pb.PlanKind.Value(f"PLAN_KIND_{kind.name}") for kind in PlanKind})
MISS_REASON = EnumPairs("miss reason", {why: pb.MissReason.Value(f"MISS_REASON_{why.name}") for why in MissReason})
RESERVE_STATUS = EnumPairs(
    "reserve status", {status: pb.ReserveStatus.Value(f"RESERVE_STATUS_{status.name}") for status in ReserveStatus}
)
PUT_STATUS = EnumPairs("put status", {status: pb.PutStatus.Value(f"PUT_STATUS_{status.name}") for status in PutStatus})
DURABILITY = EnumPairs("durability", {level: pb.Durability.Value(f"DURABILITY_{level.name}") for level in Durability})
SESSION_EVENT = EnumPairs(
    "session event", {event: pb.SessionEvent.Value(f"SESSION_EVENT_{event.name}") for event in SessionEvent}
)
