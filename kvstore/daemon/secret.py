"""The secret that namespace roots are made from: 32 random bytes in a file of mode 0600, written at first start.

It lies outside the segments' folder, so that whoever copies the segments cannot name their blocks. Without a disk
and without a file it is random and lasts as long as the daemon. Main thread, at start.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from kvstore.core.errors import MissingSecret, OperatorError

SECRET_BYTES = 32


def load_secret(path: Path | None, disk: Path | None) -> bytes:
    """Raises MissingSecret where segments are there and their secret is not, OperatorError for a file that is unfit."""
    if path is None:
        return secrets.token_bytes(SECRET_BYTES)
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    if disk is not None and _holds_segments(disk):
        raise MissingSecret(
            f"the disk folder {disk} holds segments, but their secret {path} is missing: "
            f"put it back, or move {disk} away to start empty"
        )
    try:
        return _make(path)
    except OSError as error:
        raise OperatorError(
            f"the secret {path} cannot be written ({error.strerror}): make its folder writable, or set secret_file"
        ) from error


def _read(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OperatorError(f"the secret {path} cannot be read ({error.strerror}): check its owner and mode") from error
    with open(descriptor, "rb") as file:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & 0o077:
            raise OperatorError(f"the secret {path} is open to others (mode {mode:04o}): run chmod 600 {path}")
        text = file.read(1024)
    try:
        secret = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES:
        raise OperatorError(
            f"the secret {path} does not hold {SECRET_BYTES} bytes in hexadecimal: put back the right file"
        )
    return secret


def _make(path: Path) -> bytes:
    """Whole or not at all: written aside, synced, then linked to its name."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    secret = secrets.token_bytes(SECRET_BYTES)
    aside = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(secret.hex().encode() + b"\n")
            file.flush()
            os.fsync(descriptor)
        try:
            os.link(aside, path)
        except FileExistsError:  # another daemon made it just now; the disk folder's lock sorts the two out
            return _read(path)
    finally:
        with suppress(FileNotFoundError):
            aside.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return secret


def _holds_segments(disk: Path) -> bool:
    """Anything but the lock file, which a start that failed may have left."""
    try:
        return any(entry.name != "lock" for entry in os.scandir(disk))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OperatorError(
            f"the disk folder {disk} cannot be read ({error.strerror}): check its owner and mode"
        ) from error
