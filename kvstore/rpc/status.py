"""Errors <-> gRPC status. Each carries a google.rpc.ErrorInfo with domain "kvstore" and a stable reason.

The daemon writes them, the client reads them. A status without our ErrorInfo (the transport's own: refused,
deadline, too many calls) reads as StoreUnavailable.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from kvstore.core.errors import (
    ConfigError,
    InvalidInput,
    InvalidLayout,
    KVStoreError,
    LayoutMismatch,
    OperatorError,
    OtherBootEpoch,
    StoreUnavailable,
    UnknownNamespace,
)

DOMAIN = "kvstore"

_Detail = TypeVar("_Detail", ErrorInfo, RetryInfo)


class Reason(Enum):
    """Stable: clients decide by these, never by the message."""

    INVALID_INPUT = "INVALID_INPUT"
    INVALID_LAYOUT = "INVALID_LAYOUT"
    LAYOUT_MISMATCH = "LAYOUT_MISMATCH"
    UNKNOWN_NAMESPACE = "UNKNOWN_NAMESPACE"
    OTHER_BOOT_EPOCH = "OTHER_BOOT_EPOCH"
    SHED = "SHED"  # too much work at once; RetryInfo says when to come back
    DRAINING = "DRAINING"  # the daemon is going down
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"  # a bug, logged and counted in the daemon


class _Rule(NamedTuple):
    error: type[KVStoreError]
    code: grpc.StatusCode
    reason: Reason


# First match wins: subclasses before their parents.
_RULES = (
    _Rule(InvalidLayout, grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_LAYOUT),
    _Rule(ConfigError, grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_INPUT),
    _Rule(InvalidInput, grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_INPUT),
    _Rule(LayoutMismatch, grpc.StatusCode.FAILED_PRECONDITION, Reason.LAYOUT_MISMATCH),
    _Rule(UnknownNamespace, grpc.StatusCode.FAILED_PRECONDITION, Reason.UNKNOWN_NAMESPACE),
    _Rule(OtherBootEpoch, grpc.StatusCode.FAILED_PRECONDITION, Reason.OTHER_BOOT_EPOCH),
    _Rule(StoreUnavailable, grpc.StatusCode.UNAVAILABLE, Reason.UNAVAILABLE),
    _Rule(OperatorError, grpc.StatusCode.UNAVAILABLE, Reason.UNAVAILABLE),
)
_ERROR_OF_REASON: dict[str, type[KVStoreError]] = {
    Reason.INVALID_INPUT.value: InvalidInput,
    Reason.INVALID_LAYOUT.value: InvalidLayout,
    Reason.LAYOUT_MISMATCH.value: LayoutMismatch,
    Reason.UNKNOWN_NAMESPACE.value: UnknownNamespace,
    Reason.OTHER_BOOT_EPOCH.value: OtherBootEpoch,
}


def status_of(error: KVStoreError) -> grpc.Status:
    """What the daemon answers for one of our errors."""
    return status(*rule_of(error), str(error))


def rule_of(error: KVStoreError) -> tuple[grpc.StatusCode, Reason]:
    """Code and reason of one of our errors; the reason is the same over gRPC and over the attach socket."""
    for rule in _RULES:
        if isinstance(error, rule.error):
            return rule.code, rule.reason
    return grpc.StatusCode.INTERNAL, Reason.INTERNAL


def status(code: grpc.StatusCode, reason: Reason, message: str, retry_seconds: float | None = None) -> grpc.Status:
    """A gRPC status with ErrorInfo, and with RetryInfo where `retry_seconds` says when to come back."""
    details: list[AnyMessage] = [_packed(ErrorInfo(reason=reason.value, domain=DOMAIN))]
    if retry_seconds is not None:
        delay = Duration()
        delay.FromNanoseconds(int(retry_seconds * 1e9))
        details.append(_packed(RetryInfo(retry_delay=delay)))
    rich = Status(code=code.value[0], message=message, details=details)
    return rpc_status.to_status(rich)


def error_of(failure: grpc.RpcError) -> KVStoreError:
    """What the client makes of a failed call: one of our errors, StoreUnavailable for everything else."""
    message = f"{_code(failure)}: {_details(failure)}"
    info = _detail(failure, ErrorInfo)
    if info is None or info.domain != DOMAIN:
        return StoreUnavailable(message)
    known = _ERROR_OF_REASON.get(info.reason)
    return StoreUnavailable(message) if known is None else known(_details(failure))


def error_of_reason(reason: str, message: str) -> KVStoreError:
    """What the client makes of a LaneError: the same errors as of a failed call of gRPC."""
    return _ERROR_OF_REASON.get(reason, StoreUnavailable)(message)


def retry_seconds_of(failure: grpc.RpcError) -> float | None:
    """When the daemon asked to come back; None when it did not say."""
    retry = _detail(failure, RetryInfo)
    return None if retry is None else retry.retry_delay.ToNanoseconds() / 1e9


def _packed(message: ErrorInfo | RetryInfo) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def _detail(failure: grpc.RpcError, kind: type[_Detail]) -> _Detail | None:
    """The status detail of this kind. A malformed or inconsistent status has none: it is outside data too."""
    if not isinstance(failure, grpc.Call):
        return None
    try:
        rich = rpc_status.from_call(failure)
    except (DecodeError, ValueError):
        return None
    for packed in rich.details if rich is not None else ():
        found = kind()
        if packed.Unpack(found):
            return found
    return None


def _code(failure: grpc.RpcError) -> str:
    return failure.code().name if isinstance(failure, grpc.Call) else "UNKNOWN"


def _details(failure: grpc.RpcError) -> str:
    return failure.details() or "" if isinstance(failure, grpc.Call) else str(failure)
