"""A gRPC server that streams bytes and does nothing else: the ceiling of throughput.py. Run by processes.py.

python raw_server.py unix:PATH CHUNK_BYTES       ends with its standard input
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc


def main(address: str, chunk_bytes: int) -> None:
    chunk = bytes(chunk_bytes)

    def down(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        whole, rest = divmod(json.loads(request), chunk_bytes)
        for _ in range(whole):
            yield chunk
        if rest:
            yield chunk[:rest]

    def up(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        return json.dumps(sum(map(len, messages))).encode()

    server = grpc.server(ThreadPoolExecutor(4), options=(("grpc.max_receive_message_length", -1),))
    handlers = {"Down": grpc.unary_stream_rpc_method_handler(down), "Up": grpc.stream_unary_rpc_method_handler(up)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("raw", handlers),))
    server.add_insecure_port(address)
    server.start()
    print("ready", flush=True)
    sys.stdin.read()
    server.stop(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
