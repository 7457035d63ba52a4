"""What operators' commands ask of a running daemon, each call its own short connection."""

from __future__ import annotations

import grpc
from google.protobuf.message import Message

from kvstore.core.errors import StoreUnavailable
from kvstore.rpc.generated import admin_pb2 as pb
from kvstore.rpc.methods import ADMIN_SERVICE
from kvstore.rpc.status import error_of


def fetch_status(address: str, timeout_seconds: float) -> pb.StatusResponse:
    """Raises StoreUnavailable with a remedy where no daemon answers in time."""
    return pb.StatusResponse.FromString(_asked(address, "Status", pb.StatusRequest(), timeout_seconds))


def fetch_explanation(address: str, request: pb.ExplainRequest, timeout_seconds: float) -> pb.ExplainResponse:
    """Raises InvalidInput for what the daemon does not know, StoreUnavailable where no daemon answers in time."""
    return pb.ExplainResponse.FromString(_asked(address, "Explain", request, timeout_seconds))


def fetch_policy(address: str, timeout_seconds: float) -> pb.PolicyInCharge:
    """Raises StoreUnavailable with a remedy where no daemon answers in time."""
    answer = _asked(address, "GetPolicy", pb.GetPolicyRequest(), timeout_seconds)
    return pb.GetPolicyResponse.FromString(answer).now


def change_policy(address: str, request: pb.SetPolicyRequest, timeout_seconds: float) -> pb.SetPolicyResponse:
    """Raises InvalidInput for what the daemon does not know, StoreUnavailable where no daemon answers in time."""
    return pb.SetPolicyResponse.FromString(_asked(address, "SetPolicy", request, timeout_seconds))


def _asked(address: str, method: str, request: Message, timeout_seconds: float) -> bytes:
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{ADMIN_SERVICE}/{method}", _as_it_is, _as_it_is)
        try:
            answer: bytes = call(request.SerializeToString(), timeout=timeout_seconds)
        except grpc.RpcError as failure:
            error = error_of(failure)
            if not isinstance(error, StoreUnavailable):
                raise error from failure
            raise StoreUnavailable(
                f"no daemon answers on {address}: start one with kvstore serve, or name its address with --connect"
            ) from failure
        return answer


def _as_it_is(raw: bytes) -> bytes:
    return raw
