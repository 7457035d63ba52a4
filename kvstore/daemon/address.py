"""Where the daemon listens: a Unix socket that only its user can open, or a TCP port on the loopback.

A socket is taken under an exclusive lock on `<socket>.lock`, so that of two daemons one gets it and the other hears
of it; what a killed daemon left behind is removed. Main thread, at start and end.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from kvstore.core.errors import ConfigError, OperatorError, SocketInUse

MAX_SOCKET_PATH = 107  # bytes; sun_path of Linux, less its final zero


class Address(NamedTuple):
    """Exactly one of a socket path and a loopback host with a port (0: a free one)."""

    path: Path | None
    host: str = ""
    port: int = 0

    @property
    def target(self) -> str:
        """As gRPC and our clients name it."""
        return f"{self.host}:{self.port}" if self.path is None else f"unix:{self.path}"


def parse_listen(listen: str) -> Address:
    """From `unix:PATH` or `HOST:PORT`. Raises ConfigError for what is neither, or is open to the network."""
    if listen.startswith("unix:"):
        name = listen.removeprefix("unix:")
        if not name:
            raise ConfigError("listen names no socket: write unix:PATH")
        path = Path(name).absolute()
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise ConfigError(f"the socket path {path} is longer than {MAX_SOCKET_PATH} bytes: choose a shorter one")
        return Address(path)
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"listen={listen} is no address: write unix:PATH or 127.0.0.1:PORT")
    if not _is_loopback(host):
        raise ConfigError(
            f"listen={listen} would open the store to the network without encryption: use unix:PATH or 127.0.0.1:{port}"
        )
    return Address(None, f"[{host}]" if ":" in host else host, int(port))


class SocketHold:
    """A claim on a socket path until closed; then the socket file is gone."""

    def __init__(self, path: Path) -> None:
        """Raises SocketInUse where another daemon listens, OperatorError where the path is not ours to use."""
        self.path = path
        _check_folder(path.parent)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_stale(path)
        except BlockingIOError:
            os.close(lock)
            raise SocketInUse(_in_use(path)) from None
        except BaseException:
            os.close(lock)
            raise
        self._lock: int | None = lock

    def close(self) -> None:
        """Harmless when done twice."""
        if self._lock is None:
            return
        with suppress(FileNotFoundError):
            self.path.unlink()
        os.close(self._lock)
        self._lock = None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_folder(folder: Path) -> None:
    """Whoever may write the folder could put another socket in our place."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise OperatorError(
            f"the socket's folder {folder} cannot be used ({error.strerror}): make it, or listen elsewhere"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.getuid(), 0):
        raise OperatorError(f"the socket's folder {folder} belongs to another user: listen in a folder of your own")
    if found.st_mode & 0o022:
        raise OperatorError(
            f"the socket's folder {folder} can be written by others: listen in one made with mkdir -m 700"
        )


def _remove_stale(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OperatorError(f"{path} is there and is no socket: move it away, or listen elsewhere")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        # Whatever does not refuse is alive: an accepted connection, and EAGAIN of a full backlog.
        if probe.connect_ex(str(path)) not in _DEAD:
            raise SocketInUse(_in_use(path))
    path.unlink()


def _in_use(path: Path) -> str:
    return f"another daemon listens on unix:{path}: stop it, or choose another --listen"


_DEAD = (errno.ECONNREFUSED, errno.ENOENT)  # nobody listens; it went away meanwhile
