"""What operators' commands ask of a running daemon, each call its own short connection."""

from __future__ import annotations

import grpc

from kvstore.core.errors import StoreUnavailable
from kvstore.rpc.generated import admin_pb2 as pb
from kvstore.rpc.methods import ADMIN_SERVICE
from kvstore.rpc.status import error_of


def fetch_status(address: str, timeout_seconds: float) -> pb.StatusResponse:
    """Raises StoreUnavailable with a remedy where no daemon answers in time."""
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            f"/{ADMIN_SERVICE}/Status",
            request_serializer=pb.StatusRequest.SerializeToString,
            response_deserializer=pb.StatusResponse.FromString,
        )
        try:
            answer: pb.StatusResponse = call(pb.StatusRequest(), timeout=timeout_seconds)
        except grpc.RpcError as failure:
            error = error_of(failure)
            if not isinstance(error, StoreUnavailable):
                raise error from failure
            raise StoreUnavailable(
                f"no daemon answers on {address}: start one with kvstore serve, or name its address with --connect"
            ) from failure
        return answer
