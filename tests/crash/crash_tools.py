"""A real daemon that can be killed, and documents whose bytes any reader can make again from their number."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvstore.client.client import Client
from kvstore.client.connect import connect
from kvstore.client.match import Blocks
from kvstore.client.settings import Timeouts
from kvstore.core import presets
from kvstore.core.layout import Group, ModelLayout
from kvstore.rpc.generated import admin_pb2 as admin
from kvstore.rpc.operators import fetch_status

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
LAYOUTS = (presets.v4_tiny(), presets.v4_demo())  # objects of a page; rows of 21 KB and states of 243 KB
FAMILY = 4  # documents that share their first SHARED blocks
SHARED = 2
PATIENT = Timeouts(connect_seconds=20, lookup_seconds=20, fetch_seconds=30, put_seconds=30, close_seconds=0.05)


class DaemonProcess:
    """`kvstore serve` on one folder, started and killed as often as the test likes."""

    def __init__(
        self,
        folder: Path,
        host_bytes: str,
        disk_bytes: str | None = None,
        environment: Mapping[str, str] | None = None,
        settings: str = "",
    ) -> None:
        """Without `disk_bytes` there is no disk tier; `settings` is TOML."""
        self.address = f"unix:{folder}/kv.sock"
        self.disk = folder / "segments"
        self.log = folder / "daemon.log"
        self._flags = ["--listen", self.address, "--host-bytes", host_bytes]
        if disk_bytes is not None:
            self._flags += ["--disk", str(self.disk), "--disk-bytes", disk_bytes]
        if settings:
            toml = folder / "kvstore.toml"
            toml.write_text(settings)
            self._flags += ["--config", str(toml)]
        self._environment = {**ENVIRONMENT, **(environment or {})}
        self._process: subprocess.Popen[str] | None = None

    def spawn(self) -> None:
        """Start it, without waiting until it is ready."""
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kvstore.cli.main", "serve", "--json", *self._flags],
                stdout=subprocess.PIPE, stderr=log, text=True, env=self._environment,
            )  # fmt: skip

    def start(self) -> dict[str, object]:
        """Start it; what it says when it is ready."""
        self.spawn()
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the daemon did not start: {self.log.read_text()[-2000:]}"
        facts: dict[str, object] = json.loads(line)
        return facts

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def status(self) -> admin.StatusResponse:
        return fetch_status(self.address, 30)

    def trouble(self) -> str:
        """What `kvstore status` says is wrong with the disk tier."""
        said = subprocess.run(
            [sys.executable, "-m", "kvstore.cli.main", "status", "--json", "--connect", self.address],
            capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=True,
        )  # fmt: skip
        return next(tier["trouble"] for tier in json.loads(said.stdout)["tiers"] if tier["tier"] == "disk")

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate(timeout=30)


@contextlib.contextmanager
def daemon(
    folder: Path,
    host_bytes: str,
    disk_bytes: str | None = None,
    environment: Mapping[str, str] | None = None,
    settings: str = "",
) -> Iterator[DaemonProcess]:
    folder.chmod(0o700)
    process = DaemonProcess(folder, host_bytes, disk_bytes, environment, settings)
    try:
        yield process
    finally:
        process.kill()


def client_of(process: DaemonProcess, layout: ModelLayout) -> Client:
    return connect(process.address, layout=layout, timeouts=PATIENT, can_replay=False)


@dataclass(frozen=True)
class Document:
    """Tokens, rows of every block and a state at the end, all made from `layout` and `number`."""

    layout: int
    number: int

    @property
    def blocks(self) -> int:
        return SHARED + 1 + self.number % 5

    @property
    def model(self) -> ModelLayout:
        return LAYOUTS[self.layout]

    @property
    def end_tokens(self) -> int:
        return self.blocks * self.model.block_tokens

    @property
    def raw_bytes(self) -> int:
        assert self.model.state is not None
        return self.blocks * self.model.rows.nbytes + self.model.state.nbytes

    def tokens(self) -> np.ndarray:
        """One beyond the last block, so that the whole document can be resumed from."""
        parts = [self._rng(block, 0).integers(0, 50_000, self.model.block_tokens) for block in range(self.blocks)]
        return np.concatenate([*parts, [7]]).astype(np.int32)

    def rows(self, first: int, end: int) -> dict[str, np.ndarray]:
        blocks = [_noise(self.model.rows, self._rng(block, 1)) for block in range(first, end)]
        return {name: np.stack([block[name] for block in blocks]) for name in blocks[0]}

    def state(self) -> dict[str, np.ndarray]:
        assert self.model.state is not None
        return _noise(self.model.state, self._rng(self.blocks - 1, 2))

    def put(self, client: Client) -> bool:
        """In two parts, as a session would; True if both were taken."""
        tokens = self.tokens()
        if not client.put(tokens, first_block=0, rows=self.rows(0, SHARED)):
            return False
        rest = self.rows(SHARED, self.blocks)
        return client.put(tokens, first_block=SHARED, rows=rest, states={self.end_tokens: self.state()})

    def read(self, client: Client) -> int:
        """Look up, fetch, verify every byte; how many tokens were there."""
        with client.lookup(self.tokens()) as match, client.fetch(match) as blocks:
            self._verify(blocks)
            return blocks.plan.tokens

    def _verify(self, blocks: Blocks) -> None:
        tokens = blocks.plan.tokens
        assert tokens % self.model.block_tokens == 0 and tokens <= self.end_tokens
        if not tokens:
            return
        _assert_same(blocks.rows, self.rows(0, tokens // self.model.block_tokens), self)
        assert blocks.state is not None and tokens == self.end_tokens, "only the end of a document has a state"
        _assert_same(blocks.state, self.state(), self)

    def _rng(self, block: int, what: int) -> np.random.Generator:
        owner = self.number // FAMILY if block < SHARED else 1_000_000 + self.number
        return np.random.default_rng([self.layout, owner, block, what])


def _noise(group: Group, rng: np.random.Generator) -> dict[str, np.ndarray]:
    arrays = {}
    for name in group.components():
        sections = [section for section in group.sections if section.component == name]
        shape = (len(sections), sections[0].nbytes)
        arrays[name] = np.frombuffer(rng.bytes(shape[0] * shape[1]), np.uint8).reshape(shape)
    return arrays


def _assert_same(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], document: Document) -> None:
    for name, array in wanted.items():
        assert np.array_equal(found[name][: len(array)], array), f"wrong bytes of {name} in {document}"
