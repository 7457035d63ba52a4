"""Packed objects, seen by component."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvstore.client.buffers import Bytes
from kvstore.client.packing import Packing


class RowsView(Mapping[str, Bytes]):
    """Component arrays of packed rows, made when first asked for."""

    def __init__(self, packing: Packing, objects: Bytes) -> None:
        self._packing, self._objects = packing, objects
        self._made: dict[str, Bytes] = {}

    def __getitem__(self, name: str) -> Bytes:
        if name not in self._made:
            self._made[name] = self._packing.unpack(name, self._objects)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._packing.components)

    def __len__(self) -> int:
        return len(self._packing.components)


class StateView(RowsView):
    """Component arrays of one packed state: without the axis of blocks."""

    def __getitem__(self, name: str) -> Bytes:
        array: Bytes = super().__getitem__(name)[0]
        return array
