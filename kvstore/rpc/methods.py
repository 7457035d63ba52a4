"""Every RPC of the wire, read from the generated descriptors: names, messages, which way it streams.

The streams pass raw bytes through grpc (framed in `wire.py`); all others use protobuf's serialisers.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kvstore.rpc.generated import admin_pb2, kvstore_pb2

KVSTORE_SERVICE = "kvstore.v1.KVStore"
ADMIN_SERVICE = "kvstore.v1.Admin"
RAW_METHODS = frozenset({"Fetch", "Put", "PutHandoff", "TakeHandoff"})


class Method(NamedTuple):
    service: str
    name: str
    request: type[Message]
    response: type[Message]
    streams_requests: bool
    streams_responses: bool

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"

    @property
    def function(self) -> str:
        """Its name in Python: `put_handoff`."""
        return re.sub("(?<=.)(?=[A-Z])", "_", self.name).lower()


def _methods() -> tuple[Method, ...]:
    services = (
        kvstore_pb2.DESCRIPTOR.services_by_name["KVStore"],
        admin_pb2.DESCRIPTOR.services_by_name["Admin"],
    )
    return tuple(
        Method(
            service.full_name,
            method.name,
            GetMessageClass(method.input_type),
            GetMessageClass(method.output_type),
            method.client_streaming,
            method.server_streaming,
        )
        for service in services
        for method in service.methods
    )


METHODS = _methods()
