"""A worker on the daemon's host that says exactly what a test wants: requests over a lane, memory that it maps."""

from __future__ import annotations

import hashlib
import mmap
import os
import socket
import time

import numpy as np
from daemon_peer import LAYOUT, WORKER, Peer

from kvstore.core.keys import PAGE_BYTES, Chain
from kvstore.rpc import convert
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.lane import ATTACH, ERROR, REGION, STAGING, LaneAnswer, LaneRequest, receive_answer, send_request
from kvstore.rpc.methods import METHODS

RESPONSES = {method.name: method.response for method in METHODS} | {
    ATTACH: pb.AttachResponse,
    REGION: pb.RegionResponse,
    STAGING: pb.StagingResponse,
}


class Refusal(Exception):
    """A LaneError; `reason` is its reason."""

    def __init__(self, error: pb.LaneError) -> None:
        super().__init__(f"{error.reason}: {error.message}")
        self.reason = error.reason


class LanePeer:
    """One lane. `attach=False` leaves the first request to the test."""

    def __init__(self, path: str, boot_epoch: int, worker: bytes = WORKER, attach: bool = True) -> None:
        self.worker = worker
        self.boot_epoch = boot_epoch
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(20)
        self.socket.connect(path)
        self.facts = self.attach() if attach else None

    def attach(self, **changes) -> pb.AttachResponse:
        values = {"worker_id": self.worker, "boot_epoch": self.boot_epoch} | changes
        return self.call(ATTACH, pb.AttachRequest(**values))

    def ask(self, name: str, request, timeout: float = 20.0) -> LaneAnswer:
        body = request if isinstance(request, bytes) else request.SerializeToString()
        send_request(self.socket, LaneRequest(name, timeout, body))
        return receive_answer(self.socket, time.monotonic() + 20)

    def call_fd(self, name: str, request, timeout: float = 20.0):
        """The answer and its descriptor, if it has one. Raises Refusal."""
        answer = self.ask(name, request, timeout)
        if answer.status == ERROR:
            assert answer.fd is None
            raise Refusal(pb.LaneError.FromString(answer.body))
        return RESPONSES[name].FromString(answer.body), answer.fd

    def call(self, name: str, request, timeout: float = 20.0):
        answer, fd = self.call_fd(name, request, timeout)
        assert fd is None
        return answer

    def region(self, number: int, namespace_id: bytes) -> tuple[int, int]:
        """Descriptor and length of a region's file."""
        answer, fd = self.call_fd(REGION, pb.RegionRequest(namespace_id=namespace_id, region=number))
        return fd, answer.nbytes

    def stage(self, nbytes: int) -> mmap.mmap:
        """The staging region, mapped writable."""
        answer, fd = self.call_fd(STAGING, pb.StagingRequest(nbytes=nbytes))
        try:
            return mmap.mmap(fd, answer.nbytes)
        finally:
            os.close(fd)

    def close(self) -> None:
        self.socket.close()


class Mapped:
    """All regions of a daemon, mapped to read."""

    def __init__(self, lane: LanePeer, namespace_id: bytes) -> None:
        self.pages = lane.facts.region_pages
        self.maps = []
        for number in range(lane.facts.regions):
            fd, nbytes = lane.region(number, namespace_id)
            self.maps.append(mmap.mmap(fd, nbytes, prot=mmap.PROT_READ))
            os.close(fd)

    def word(self, page: int) -> int:
        """What the stamp table says at a page."""
        region, page = divmod(page, self.pages)
        start = self.pages * PAGE_BYTES + page * 8
        return int.from_bytes(self.maps[region][start : start + 8], "little")

    def bytes_at(self, page: int, nbytes: int) -> bytes:
        region, page = divmod(page, self.pages)
        return self.maps[region][page * PAGE_BYTES : page * PAGE_BYTES + nbytes]


def records(descriptors: pb.Descriptors, slots: int) -> list[tuple[list[int], int, bytes]]:
    """(pages, stamp, content) of each object."""
    kind = np.dtype([("pages", "<u4", (slots,)), ("stamp", "<u8"), ("content", "V16")])
    return [
        (list(map(int, row["pages"])), int(row["stamp"]), bytes(row["content"]))
        for row in np.frombuffer(descriptors.records, kind)
    ]


def open_lane(peer: Peer, worker: bytes = WORKER) -> LanePeer:
    return LanePeer(peer.hello.attach_path, peer.hello.boot_epoch, worker)


def staged_put(chain: Chain, blocks, offsets, groups=None, lineage: bytes = bytes(16)) -> pb.StagedPut:
    return pb.StagedPut(
        chain=convert.chain_to_wire(chain),
        lineage=lineage,
        blocks=list(blocks),
        groups=[0] * len(list(blocks)) if groups is None else list(groups),
        offsets=list(offsets),
    )


def commit_request(peer: Peer, *puts: pb.StagedPut, **changes) -> pb.CommitRequest:
    values = {"namespace_id": peer.hello.namespace_id, "boot_epoch": peer.hello.boot_epoch, "staged": puts}
    return pb.CommitRequest(**(values | changes))


def objects_of(chain: Chain) -> list[tuple[int, int]]:
    """(block, group) of the rows of every block and of the state at the last one."""
    return [(block, 0) for block in range(chain.blocks)] + [(chain.blocks - 1, 1)]


def put_over(peer: Peer, lane: LanePeer, chain: Chain) -> dict[tuple[int, int], bytes]:
    """Stages and commits `objects_of` a chain, bytes made from their name; all must be stored."""
    bodies = {}
    staging = lane.stage(64 * PAGE_BYTES)
    offsets, end = [], 0
    for block, group in objects_of(chain):
        seed = hashlib.sha256(chain.hash_at(block) + bytes([group])).digest()
        bodies[block, group] = (seed * (LAYOUT.groups[group].nbytes // len(seed) + 1))[: LAYOUT.groups[group].nbytes]
        staging[end : end + LAYOUT.groups[group].nbytes] = bodies[block, group]
        offsets.append(end)
        end += LAYOUT.groups[group].nbytes
    blocks, groups = zip(*objects_of(chain), strict=True)
    put = staged_put(chain, blocks, offsets, groups)
    [result] = lane.call("Commit", commit_request(peer, put)).staged
    assert set(result.outcomes) == {pb.PUT_STATUS_STORED}, result
    return bodies


def fill(peer: Peer, lane: LanePeer, seed: int = 1) -> None:
    """Put chains until the host must have forgotten what nobody holds."""
    for number in range(seed, seed + 8 * (8 << 20) // PAGE_BYTES // 256):
        put_over(peer, lane, peer.chain(255, seed=number))


def lookup_request(peer: Peer, chain: Chain, **changes) -> pb.LookupRequest:
    """A Lookup of a worker that has mapped the daemon's memory."""
    values = {
        "namespace_id": peer.hello.namespace_id,
        "worker_id": WORKER,
        "chain": convert.chain_to_wire(chain),
        "prompt_tokens": chain.blocks * LAYOUT.block_tokens + 1,
        "want_descriptors": True,
    }
    return pb.LookupRequest(**(values | changes))
