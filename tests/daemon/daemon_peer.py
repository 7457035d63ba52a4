"""A client that says exactly what a test wants, and what daemon tests share."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import grpc

from kvstore.config import Config, load_config
from kvstore.core import presets
from kvstore.core.checksum import content_checksum
from kvstore.core.fingerprint import fingerprint
from kvstore.core.keys import Chain
from kvstore.core.prefix import hash_blocks
from kvstore.core.reserve import ObjectSpec
from kvstore.rpc import convert, wire
from kvstore.rpc.generated import admin_pb2, kvstore_pb2
from kvstore.rpc.layouts import layout_to_wire
from kvstore.rpc.methods import METHODS

LAYOUT = presets.v4_tiny()
WORKER = b"w" * 16


def config_at(folder: Path, **limits: float) -> Config:
    config = load_config(None, {"listen": f"unix:{folder}/kv.sock", "host.bytes": "8MiB"})
    return replace(config, limits=replace(config.limits, **limits))


class Peer:
    """A client that says exactly what a test wants, bytes where it wants bytes."""

    def __init__(self, target: str) -> None:
        self.channel = grpc.insecure_channel(target, options=[("grpc.max_receive_message_length", 8 << 20)])
        self.methods = {method.name: method for method in METHODS}
        self.hello: kvstore_pb2.HelloResponse | None = None

    def call(self, name: str, request, timeout: float | None = 10.0):
        method = self.methods[name]
        raw = request if isinstance(request, bytes) else request.SerializeToString()
        return method.response.FromString(self.channel.unary_unary(method.path)(raw, timeout=timeout))

    def fetch_raw(self, request, timeout: float | None = 10.0):
        return self.channel.unary_stream(self.methods["Fetch"].path)(request.SerializeToString(), timeout=timeout)

    def put_raw(self, messages, timeout: float | None = 10.0):
        raw = self.channel.stream_unary(self.methods["Put"].path)(messages, timeout=timeout)
        return kvstore_pb2.PutResponse.FromString(raw)

    def say_hello(self, layout=LAYOUT, **changes):
        request = kvstore_pb2.HelloRequest(
            layout=layout_to_wire(layout), fingerprint=fingerprint(layout), worker_id=WORKER, **changes
        )
        self.hello = self.call("Hello", request)
        return self.hello

    def chain(self, blocks: int, seed: int = 0) -> Chain:
        tokens = seed.to_bytes(4, "little") * (LAYOUT.block_tokens * blocks)
        return Chain(0, self.hello.root, hash_blocks(self.hello.root, tokens, LAYOUT.block_tokens))

    def lookup(self, chain: Chain, **changes):
        values = {
            "namespace_id": self.hello.namespace_id,
            "worker_id": WORKER,
            "chain": convert.chain_to_wire(chain),
            "prompt_tokens": chain.blocks * LAYOUT.block_tokens + 1,
        }
        return self.call("Lookup", kvstore_pb2.LookupRequest(**(values | changes)))

    def reserve(self, chain: Chain, bodies: list[bytes]):
        specs = [ObjectSpec(block, 0, len(body), content_checksum([body])) for block, body in enumerate(bodies)]
        return self.call(
            "Reserve",
            kvstore_pb2.ReserveRequest(
                namespace_id=self.hello.namespace_id,
                worker_id=WORKER,
                chain=convert.chain_to_wire(chain),
                lineage=bytes(16),
                objects=convert.specs_to_wire(specs),
            ),
        )

    def header(self, reservation: int, objects) -> kvstore_pb2.PutHeader:
        return kvstore_pb2.PutHeader(
            namespace_id=self.hello.namespace_id,
            boot_epoch=self.hello.boot_epoch,
            reservation=reservation,
            objects=objects,
        )

    def put(self, chain: Chain, bodies: list[bytes], chunk: int = 1 << 20) -> list[int]:
        reserved = self.reserve(chain, bodies)
        stream = b"".join(bodies)
        frames = [
            wire.frame_put(
                self.header(reserved.reservation, range(len(bodies))) if start == 0 else None,
                [memoryview(stream)[start : start + chunk]],
            )
            for start in range(0, len(stream), chunk)
        ]
        return list(self.put_raw(iter(frames)).statuses)

    def fetch_request(self, chain: Chain, blocks: int, **changes):
        values = {
            "namespace_id": self.hello.namespace_id,
            "boot_epoch": self.hello.boot_epoch,
            "lease": 1,
            "chain": convert.chain_to_wire(chain),
            "end_row": blocks,
        }
        return kvstore_pb2.FetchRequest(**(values | changes))

    def fetch(self, chain: Chain, blocks: int, **changes) -> list[wire.FetchFrame]:
        return [wire.parse_fetch(raw) for raw in self.fetch_raw(self.fetch_request(chain, blocks, **changes))]

    def status(self) -> admin_pb2.StatusResponse:
        return self.call("Status", admin_pb2.StatusRequest())


def body(block: int, nbytes: int | None = None) -> bytes:
    return bytes([block % 251]) * (LAYOUT.rows.nbytes if nbytes is None else nbytes)


def until(condition, seconds: float = 10.0) -> None:
    """Wait for something another thread does; fails when it never does."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it never happened"
        time.sleep(0.005)
