"""Errors keep their kind and their sentence over the wire."""

from __future__ import annotations

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from kvstore.core import errors
from kvstore.rpc.status import Reason, error_of, retry_seconds_of, status, status_of


class Failure(grpc.RpcError, grpc.Call):
    """A failed call as the client sees it."""

    def __init__(self, sent: grpc.Status) -> None:
        self._sent = sent

    def code(self):
        return self._sent.code

    def details(self):
        return self._sent.details

    def trailing_metadata(self):
        return self._sent.trailing_metadata

    initial_metadata = time_remaining = is_active = cancel = add_callback = None


Failure.__abstractmethods__ = frozenset()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidInput("a b"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.InvalidLayout("a b"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.LayoutMismatch("a b"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.UnknownNamespace("a b"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.OtherBootEpoch("a b"), grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
def test_an_error_arrives_as_itself(error, code):
    sent = status_of(error)
    received = error_of(Failure(sent))
    assert sent.code == code
    assert (type(received), str(received)) == (type(error), "a b")


@pytest.mark.parametrize("error", [errors.TierFault("disk"), errors.StoreUnavailable("x"), errors.CorruptFrame("y")])
def test_what_the_store_has_to_settle_arrives_as_unavailable(error):
    assert type(error_of(Failure(status_of(error)))) is errors.StoreUnavailable


def test_every_error_says_its_reason_in_our_domain():
    rich = rpc_status.from_call(Failure(status_of(errors.UnknownNamespace("x"))))
    info = ErrorInfo()
    assert rich.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("kvstore", "UNKNOWN_NAMESPACE")


def test_shed_work_is_told_when_to_come_back():
    shed = Failure(status(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.SHED, "too many", retry_seconds=0.25))
    assert retry_seconds_of(shed) == 0.25
    assert type(error_of(shed)) is errors.StoreUnavailable
    assert retry_seconds_of(Failure(status_of(errors.InvalidInput("x")))) is None


def test_a_status_that_is_not_ours_or_is_garbled_is_unavailable():
    class Garbled(Failure):
        def trailing_metadata(self):
            return (("grpc-status-details-bin", b"\xff\xff\xff"),)

    assert type(error_of(Garbled(status_of(errors.InvalidInput("x"))))) is errors.StoreUnavailable
    assert type(error_of(grpc.RpcError("gone"))) is errors.StoreUnavailable
