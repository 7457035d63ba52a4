"""A fake attach socket: what a daemon's looks like from a client, misbehaving on demand. One thread a lane."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

from kvstore.core.errors import InvalidInput
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.lane import ATTACH, ERROR, OK, REGION, LaneAnswer, receive_request, send_answer
from kvstore.tiers.host import region_file_bytes

REGION_PAGES = 512


class FakeAttach:
    """Answers by `handlers[name](body) -> Message | LaneAnswer`; what has no handler is refused as INVALID_INPUT.

    `regions` are memfds in the shape of the daemon's. Faults are attributes, read where they bite.
    """

    def __init__(self, path: str, epoch: int = 1, regions: int = 2) -> None:
        self.path, self.epoch = path, epoch
        self.seen: Counter = Counter()
        self.handlers: dict[str, Callable[[bytes], object]] = {}
        self.refuse_attach: str | None = None  # a reason
        self.hang_up_on: set[str] = set()  # names: the lane is closed instead of an answer
        self.silent_on: set[str] = set()
        self.lanes: list[socket.socket] = []
        self.region_fds = []
        for _ in range(regions):
            fd = os.memfd_create("fake-region", os.MFD_ALLOW_SEALING)
            os.truncate(fd, region_file_bytes(REGION_PAGES))
            self.region_fds.append(fd)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        for fd in self.region_fds:
            os.close(fd)
        self.region_fds.clear()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def hang_up(self) -> None:
        """Close every lane."""
        for lane in self.lanes:
            with contextlib.suppress(OSError):
                lane.shutdown(socket.SHUT_RDWR)
        self.lanes.clear()

    def _accept(self) -> None:
        while True:
            try:
                lane, _ = self._listener.accept()
            except OSError:
                return
            self.lanes.append(lane)
            threading.Thread(target=self._serve, args=(lane,), daemon=True).start()

    def _serve(self, lane: socket.socket) -> None:
        with lane, contextlib.suppress(OSError, InvalidInput):
            while (request := receive_request(lane)) is not None:
                self.seen[request.name] += 1
                if request.name in self.hang_up_on:
                    return
                if request.name in self.silent_on:
                    time.sleep(30)
                send_answer(lane, self._answer(request.name, request.body))

    def _answer(self, name: str, body: bytes) -> LaneAnswer:
        if name == ATTACH:
            asked = pb.AttachRequest.FromString(body)
            if self.refuse_attach is not None:
                return error(self.refuse_attach, "no")
            if asked.boot_epoch != self.epoch:
                return error("OTHER_BOOT_EPOCH", "restarted")
            facts = pb.AttachResponse(boot_epoch=self.epoch, region_pages=REGION_PAGES, regions=len(self.region_fds))
            return LaneAnswer(OK, facts.SerializeToString())
        if name in self.handlers:
            answer = self.handlers[name](body)
            return answer if isinstance(answer, LaneAnswer) else LaneAnswer(OK, answer.SerializeToString())
        if name == REGION:
            number = pb.RegionRequest.FromString(body).region
            if number >= len(self.region_fds):
                return error("INVALID_INPUT", f"there is no region {number}")
            nbytes = region_file_bytes(REGION_PAGES)
            return LaneAnswer(OK, pb.RegionResponse(nbytes=nbytes).SerializeToString(), self.region_fds[number])
        return error("INVALID_INPUT", f"no {name} here")


def error(reason: str, message: str) -> LaneAnswer:
    return LaneAnswer(ERROR, pb.LaneError(reason=reason, message=message).SerializeToString())
