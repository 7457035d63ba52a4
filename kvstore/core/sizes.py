"""Sizes as people write them: "512MiB", "4GiB", "10%". Pure; any thread."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from kvstore.core.errors import ConfigError

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
# Makers of disks state in powers of ten how much may be written; a size in them is refused, lest GB be read as GiB.
WRITTEN_UNITS = {**UNITS, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z%]*)\s*")


def parse_size(
    value: object, total: Callable[[], int] | None = None, units: Mapping[str, int] = MappingProxyType(UNITS)
) -> int:
    """Bytes from 4096, "4GiB", "1.5TiB" or, where `total` says of what, "10%".

    >>> parse_size("4KiB"), parse_size("0"), parse_size("10%", lambda: 1000)
    (4096, 0, 100)
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ConfigError(f"{value} is negative: give a size of at least 0, such as 4GiB")
        return value
    if not isinstance(value, str):
        raise ConfigError(f"{value!r} is no size: write bytes as a number, or a text such as 4GiB or 10%")
    if value.strip().startswith("-"):
        raise ConfigError(f"{value} is negative: give a size of at least 0, such as 4GiB")
    found = _SIZE.fullmatch(value)
    if found is None:
        raise ConfigError(f"{value!r} is no size: write a number and a unit, such as 4GiB or 10%")
    number, unit = float(found[1]), found[2] or "B"
    if unit == "%":
        if total is None:
            raise ConfigError(f"{value} has nothing to be a share of: write it in GiB")
        if number > 100:
            raise ConfigError(f"{value} is more than there is: write at most 100%")
        return int(total() * number / 100)
    if unit not in units:
        raise ConfigError(f"{value} has the unknown unit {unit}: use one of {', '.join(units)} or %")
    return int(found[1]) * units[unit] if found[1].isdecimal() else int(number * units[unit])


def format_size(nbytes: int) -> str:
    """In the largest unit that leaves at least one whole.

    >>> format_size(4 << 30), format_size(1536), format_size(7)
    ('4.0 GiB', '1.5 KiB', '7 B')
    """
    unit = next((name for name in reversed(UNITS) if nbytes >= UNITS[name]), "B")
    return f"{nbytes} B" if unit == "B" else f"{nbytes / UNITS[unit]:.1f} {unit}"
