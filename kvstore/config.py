"""The daemon's configuration: one frozen tree, read once from one TOML file, overridden by flags of `serve`.

Nothing else reads a config file, nothing reads the environment, nothing changes the tree after load. An unknown
key is an error that names the nearest one. Sizes are bytes: an integer, "512MiB", "4GiB", or "10%" of the
machine's memory (host) or of the filesystem (disk).

    listen = "unix:/run/kvstore/kvstore.sock"    # or HOST:PORT on the loopback
    secret_file = "/etc/kvstore/secret"          # default: beside the disk folder, <folder>.secret
    drain_seconds = 10.0

    [host]
    bytes = "4GiB"
    handoff_bytes = "256MiB"                     # for handoffs, beside it; default: 1/16 of it, at least 64MiB

    [disk]
    folder = "/var/lib/kvstore/segments"         # without it there is no disk tier
    bytes = "50GiB"
    codec = "raw"                                # or "zstd"
    admission = "all"                            # second-hit, adaptive: what is copied to disk, core/disk_admission.py
    write_bytes_per_day = "0"                    # such as "5TB"; 0: as much as comes

    [match]
    placement = "adaptive"                       # every, interval:N, ends, ends+junctions, none
    replay = true
    lease_seconds = 30.0

    [evict]
    policy = "adaptive"                          # or lru, lfu, slru, s3fifo, arc, gdsf, hazard, tlru, ttl
    keep_seconds = "adaptive"                    # used so lately, and on no disk: not evicted for what is new

    [lifecycle]                                  # forget what was unused for so long; 0.0: when there is no room for it
    ttl_scratch_seconds = 600.0                  # reasoning that the next turn strips, branches of quick instructions
    ttl_session_seconds = 0.0
    ttl_shared_seconds = 0.0

    [limits]
    calls = 64                                   # small calls at once; more are shed
    fetches = 16
    puts = 8                                     # shed first
    call_seconds = 10.0                          # deadline of a call that names none
    max_call_seconds = 120.0                     # no call may take longer
    lanes = 256                                  # connections of workers on this host, up to 8 each; a thread each
    staging_bytes = "1GiB"                       # memory that they put from, all together, beside the host tier
"""

from __future__ import annotations

import difflib
import os
import shutil
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from kvstore.core.classes import SCRATCH_SECONDS, Lives
from kvstore.core.disk_admission import DiskAdmission
from kvstore.core.errors import ConfigError
from kvstore.core.placement import Placement
from kvstore.core.shadows import ADAPTIVE, variants_for
from kvstore.core.sizes import UNITS, WRITTEN_UNITS, parse_size

DEFAULT_LISTEN = "unix:/run/kvstore/kvstore.sock"
MIN_HOST_BYTES = 8 << 20  # below this not even one state of a large model and the rows under it fit
HANDOFF_SHARE = 16  # of the host tier's bytes one part is for handoffs ...
MIN_HANDOFF_BYTES = 64 << 20  # ... and at least four of V4-Flash's at any length, its rows left in the store
MAX_TTL_SECONDS = 366 * 86_400.0
_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True, slots=True)
class HostConfig:
    """Host memory. Handoffs have their own, taken from the machine only when there are some; 0: none are taken."""

    bytes: int
    handoff_bytes: int


@dataclass(frozen=True, slots=True)
class DiskConfig:
    """The disk tier. `folder` belongs to one daemon; it is made with mode 0700 where it is missing."""

    folder: Path
    bytes: int
    codec: str
    admission: DiskAdmission
    write_bytes_per_day: int


@dataclass(frozen=True, slots=True)
class MatchConfig:
    """What a match offers: where states are taken, whether a missing one is replayed, how long a lease holds."""

    placement: Placement
    lease_seconds: float


@dataclass(frozen=True, slots=True)
class EvictConfig:
    """What leaves first where memory is short: a policy's name, as `core/policies` has it; and what may not leave.

    Both may be left to the store, which tries them on ghosts: "adaptive", and None of the seconds (`core/shadows.py`).
    """

    policy: str
    keep_seconds: float | None


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """How much work is taken on at once, and how long a call may last."""

    calls: int
    fetches: int
    puts: int
    call_seconds: float
    max_call_seconds: float
    lanes: int
    staging_bytes: int


@dataclass(frozen=True, slots=True)
class Config:
    listen: str
    secret_file: Path | None  # None only without a disk: then the secret is random and lasts as long as the daemon
    drain_seconds: float
    host: HostConfig
    disk: DiskConfig | None
    match: MatchConfig
    evict: EvictConfig
    lives: Lives
    limits: LimitsConfig


def load_config(path: Path | None = None, flags: Mapping[str, object] | None = None) -> Config:
    """The tree from a TOML file and flags; `flags` maps dotted keys to values, None where a flag was not given.

    Raises ConfigError with one sentence that names the key, the fact and the remedy.
    """
    settings = _Settings(_flat(_parsed(path)), path)
    for key, value in (flags or {}).items():
        if value is not None:
            settings.override(key, value)
    return _read(settings)


def memory_bytes() -> int:
    """Memory this process may use: the machine's, or the control group's limit where that is lower."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            text = limit.read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            machine = min(machine, int(text))
    return machine


def filesystem_bytes(folder: Path) -> int:
    """Size of the filesystem that holds the folder, or will hold it. ConfigError where it cannot be looked at."""
    there = folder.absolute()
    try:
        while not there.exists():
            there = there.parent
        return shutil.disk_usage(there).total
    except OSError as error:
        raise ConfigError(
            f"{there} cannot be looked at ({error.strerror}): make its folder readable, or choose another"
        ) from error


def _read(settings: _Settings) -> Config:
    listen = settings.text("listen", DEFAULT_LISTEN)
    secret = settings.path("secret_file")
    drain_seconds = settings.number("drain_seconds", 10.0, 0.0, 600.0)
    host_bytes = settings.size("host.bytes", "1GiB", memory_bytes)
    handoffs = str(max(MIN_HANDOFF_BYTES, host_bytes // HANDOFF_SHARE))
    host = HostConfig(host_bytes, settings.size("host.handoff_bytes", handoffs, memory_bytes))
    folder = settings.path("disk.folder")
    disk_bytes = settings.size("disk.bytes", "10%", lambda: filesystem_bytes(folder or Path("/")))
    codec = settings.choice("disk.codec", "raw", ("raw", "zstd"))
    budget = settings.size("disk.write_bytes_per_day", "0", None, WRITTEN_UNITS)
    admission = settings.checked(
        "disk.admission", lambda: DiskAdmission.parse(settings.text("disk.admission", "all"), budget)
    )
    replay = settings.flag("match.replay", True)
    match = MatchConfig(
        placement=settings.checked(
            "match.placement", lambda: Placement.parse(settings.text("match.placement", "adaptive"), replay)
        ),
        lease_seconds=settings.number("match.lease_seconds", 30.0, 1.0, 3600.0),
    )
    policy = settings.text("evict.policy", ADAPTIVE)
    settings.checked("evict.policy", lambda: variants_for(policy, None))
    keep_seconds = None
    if not settings.says("evict.keep_seconds", ADAPTIVE):
        keep_seconds = settings.number("evict.keep_seconds", 0.0, 0.0, 86_400.0)
    evict = EvictConfig(policy, keep_seconds)
    lives = Lives(
        scratch=settings.number("lifecycle.ttl_scratch_seconds", SCRATCH_SECONDS, 0.0, MAX_TTL_SECONDS) or None,
        session=settings.number("lifecycle.ttl_session_seconds", 0.0, 0.0, MAX_TTL_SECONDS) or None,
        shared=settings.number("lifecycle.ttl_shared_seconds", 0.0, 0.0, MAX_TTL_SECONDS) or None,
    )
    limits = LimitsConfig(
        calls=settings.count("limits.calls", 64, 1, 1024),
        fetches=settings.count("limits.fetches", 16, 1, 256),
        puts=settings.count("limits.puts", 8, 1, 256),
        call_seconds=settings.number("limits.call_seconds", 10.0, 0.1, 3600.0),
        max_call_seconds=settings.number("limits.max_call_seconds", 120.0, 0.1, 3600.0),
        lanes=settings.count("limits.lanes", 256, 1, 4096),
        staging_bytes=settings.size("limits.staging_bytes", "1GiB", memory_bytes),
    )
    settings.refuse_unknown()
    if host.bytes < MIN_HOST_BYTES:
        raise ConfigError(f"{settings.named('host.bytes')} is {host.bytes} bytes: give it at least 8MiB")
    if host.bytes > memory_bytes():
        raise ConfigError(
            f"{settings.named('host.bytes')} is {host.bytes} bytes, this machine has {memory_bytes()}: give it less"
        )
    if settings.was_given("host.handoff_bytes") and host.bytes + host.handoff_bytes > memory_bytes():
        raise ConfigError(
            f"{settings.named('host.handoff_bytes')} is {host.handoff_bytes} bytes beside host.bytes={host.bytes}, "
            f"this machine has {memory_bytes()}: give them less"
        )
    if settings.was_given("limits.staging_bytes") and host.bytes + limits.staging_bytes > memory_bytes():
        raise ConfigError(
            f"{settings.named('limits.staging_bytes')} is {limits.staging_bytes} bytes beside host.bytes={host.bytes}, "
            f"this machine has {memory_bytes()}: give them less"
        )
    if limits.call_seconds > limits.max_call_seconds:
        raise ConfigError(
            f"{settings.named('limits.call_seconds')} is above max_call_seconds={limits.max_call_seconds}: lower it"
        )
    if folder is None:
        if settings.was_given("disk.bytes") and disk_bytes:
            raise ConfigError(f"{settings.named('disk.bytes')} is set without a folder: name one with disk.folder")
        return Config(listen, secret, drain_seconds, host, None, match, evict, lives, limits)
    if not disk_bytes:
        raise ConfigError(f"{settings.named('disk.bytes')} is 0: give the disk a size, or leave disk.folder out")
    on_filesystem = settings.checked("disk.folder", lambda: filesystem_bytes(folder))
    if disk_bytes > on_filesystem:
        raise ConfigError(
            f"{settings.named('disk.bytes')} is {disk_bytes} bytes, the filesystem of {folder} has {on_filesystem}: "
            "give it less"
        )
    secret = secret or folder.with_name(folder.name + ".secret")
    if secret.is_relative_to(folder):
        raise ConfigError(f"secret_file {secret} lies inside the disk folder {folder}: keep it outside")
    return Config(
        listen,
        secret,
        drain_seconds,
        host,
        DiskConfig(folder, disk_bytes, codec, admission, budget),
        match,
        evict,
        lives,
        limits,
    )


class _Given(NamedTuple):
    value: object
    origin: str  # what to call it in a message: the key in the file, or the flag


class _Settings:
    """What was given, by dotted key. A key is known when somebody read it."""

    def __init__(self, given: Mapping[str, object], path: Path | None) -> None:
        self._given = {key: _Given(value, f"{key} in {path}") for key, value in given.items()}
        self._known: set[str] = set()

    def override(self, key: str, value: object) -> None:
        self._given[key] = _Given(value, f"--{_FLAGS.get(key, key)}")

    def was_given(self, key: str) -> bool:
        return key in self._given

    def named(self, key: str) -> str:
        return self._given[key].origin if key in self._given else f"{key} (default)"

    def says(self, key: str, word: str) -> bool:
        """The key is this word, or was not given at all."""
        return self._value(key, word) == word

    def text(self, key: str, default: str) -> str:
        value = self._value(key, default)
        if not isinstance(value, str) or not value or "\0" in value:
            raise ConfigError(f"{self.named(key)} is {value!r}: give it a text")
        return value

    def path(self, key: str) -> Path | None:
        return Path(self.text(key, "")).absolute() if self._value(key, None) is not None else None

    def flag(self, key: str, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.named(key)} is {value!r}: write true or false")
        return value

    def number(self, key: str, default: float, low: float, high: float) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ConfigError(f"{self.named(key)} is {value!r}: give it a number from {low:g} to {high:g}")
        return float(value)

    def count(self, key: str, default: int, low: int, high: int) -> int:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigError(f"{self.named(key)} is {value!r}: give it a whole number from {low} to {high}")
        return value

    def choice(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        value = self._value(key, default)
        if value not in choices:
            raise ConfigError(f"{self.named(key)} is {value!r}: choose one of {', '.join(choices)}")
        return str(value)

    def size(self, key: str, default: str, total: Callable[[], int] | None, units: Mapping[str, int] = UNITS) -> int:
        value = self._value(key, default)
        return self.checked(key, lambda: parse_size(value, total, units))

    def checked(self, key: str, parse: Callable[[], _Parsed]) -> _Parsed:
        """Whatever `parse` makes; its complaints are put under the key's name."""
        try:
            return parse()
        except ConfigError as error:
            raise ConfigError(f"{self.named(key)}: {error}") from error

    def refuse_unknown(self) -> None:
        for key in self._given:
            if key not in self._known:
                near = difflib.get_close_matches(key, sorted(self._known), n=1, cutoff=0.5)
                remedy = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(sorted(self._known))}"
                raise ConfigError(f"{self.named(key)} is an unknown key: {remedy}")

    def _value(self, key: str, default: object) -> object:
        self._known.add(key)
        return self._given[key].value if key in self._given else default


# Flags of `serve` and the keys they override; everything else is set in the file.
_FLAGS = {"listen": "listen", "host.bytes": "host-bytes", "disk.folder": "disk", "disk.bytes": "disk-bytes"}


def _parsed(path: Path | None) -> Mapping[str, object]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read ({error.strerror}): check its path and mode") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} is no TOML: {error}") from error


def _flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
