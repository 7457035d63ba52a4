"""Component arrays <-> packed objects, after the layout.

An object is its group's sections one after another (layer order, then component order). Workers hold arrays by
component: `(blocks, layers having it, section bytes)` for rows, `(layers having it, section bytes)` for states. Both
are views of the same bytes where a component's sections lie at one stride, and a few of them where they do not, so a
copy is one numpy assignment for each such run, whatever the number of blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from kvstore.client.buffers import Bytes
from kvstore.core.errors import InvalidInput
from kvstore.core.layout import Group


class Run(NamedTuple):
    """Sections of one component at one stride: layers [first, first + layers) of those that have it."""

    first: int
    layers: int
    offset: int  # of the first section in the object
    stride: int  # bytes from section to section


class Component(NamedTuple):
    name: str
    layers: int  # that have it
    section_bytes: int
    runs: tuple[Run, ...]


class Packing:
    """How one group's objects are made of component arrays. Immutable; any thread."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.object_bytes = group.nbytes
        self.components = {name: _component(group, name) for name in group.components()}

    def shape(self, name: str, blocks: int) -> tuple[int, int, int]:
        component = self.components[name]
        return (blocks, component.layers, component.section_bytes)

    def check(self, arrays: Mapping[str, Bytes], blocks: int | None, what: str) -> None:
        """Raise InvalidInput unless `arrays` hold every component in its shape; blocks is None for one state."""
        for name in arrays:
            if name not in self.components:
                known = ", ".join(self.components)
                raise InvalidInput(f"{what} have no component {name!r}: this layout has {known}")
        for name in self.components:
            if name not in arrays:
                raise InvalidInput(f"{what} lack component {name!r}")
            expected = self.shape(name, blocks or 0)
            shape = expected if blocks is not None else expected[1:]
            check_array(arrays[name], shape, f"component {name!r} of {what}")

    def pack(self, arrays: Mapping[str, Bytes], objects: Bytes) -> None:
        """Copy checked rows arrays into `objects`, shape (blocks, object bytes or more: the rest stays)."""
        for name in self.components:
            for run, view in self._views(name, objects):
                view[...] = arrays[name][:, run.first : run.first + run.layers]

    def unpack(self, name: str, objects: Bytes) -> Bytes:
        """One component of `objects`, shape (blocks, layers, section bytes): a view where its sections have one
        stride, else a copy."""
        runs = self.components[name].runs
        if len(runs) == 1:
            return next(self._views(name, objects))[1]
        array = np.empty(self.shape(name, len(objects)), np.uint8)
        self.unpack_into(name, objects, array)
        return array

    def unpack_into(self, name: str, objects: Bytes, array: Bytes) -> None:
        for run, view in self._views(name, objects):
            array[:, run.first : run.first + run.layers] = view

    def _views(self, name: str, objects: Bytes) -> Iterator[tuple[Run, Bytes]]:
        """Views of one component in objects of any spacing."""
        component = self.components[name]
        for run in component.runs:
            shape = (len(objects), run.layers, component.section_bytes)
            if not len(objects):
                yield run, np.empty(shape, np.uint8)
                continue
            assert objects.shape[1] >= self.object_bytes and objects.strides[1] == 1
            yield run, as_strided(objects[:, run.offset :], shape, (objects.strides[0], run.stride, 1))

    def sections(self, name: str, buffer: Bytes, offset: int, spacing: int, blocks: int) -> Iterator[tuple[Run, Bytes]]:
        """Views of one component in objects that start at `offset` in a flat buffer and then every `spacing` bytes,
        which may be negative. ValueError where an object would lie outside the buffer."""
        component = self.components[name]
        for run in component.runs:
            shape = (blocks, run.layers, component.section_bytes)
            if not blocks:
                yield run, np.empty(shape, np.uint8)
            else:
                yield run, np.ndarray(shape, np.uint8, buffer, offset + run.offset, (spacing, run.stride, 1))


def check_array(array: object, shape: tuple[int, ...], what: str) -> None:
    """Raise InvalidInput unless `array` is a uint8 numpy array of this shape."""
    if not isinstance(array, np.ndarray):
        raise InvalidInput(f"{what} is a {type(array).__name__}: pass a numpy array of uint8, shape {shape}")
    if array.dtype != np.uint8:
        raise InvalidInput(f"{what} has dtype {array.dtype}, expected uint8: pass `.view(numpy.uint8)`")
    if array.shape != shape:
        raise InvalidInput(f"{what} has shape {array.shape}, expected {shape}")


def _component(group: Group, name: str) -> Component:
    placed = [
        (offset, section.nbytes)
        for offset, section in zip(group.offsets(), group.sections, strict=False)
        if section.component == name
    ]
    lengths = {nbytes for _, nbytes in placed}
    if len(lengths) != 1:
        # the arrays have one section length; a model with two of them names them as two components
        raise InvalidInput(
            f"component {name!r} of group {group.name!r} has sections of {sorted(lengths)} bytes: name them apart"
        )
    return Component(name, len(placed), lengths.pop(), tuple(_runs([offset for offset, _ in placed])))


def _runs(offsets: list[int]) -> Iterator[Run]:
    """The offsets as the fewest consecutive arithmetic runs, found greedily."""
    first = 0
    while first < len(offsets):
        end = first + 1
        stride = offsets[end] - offsets[first] if end < len(offsets) else 0
        while end < len(offsets) and offsets[end] - offsets[end - 1] == stride:
            end += 1
        yield Run(first, end - first, offsets[first], stride)
        first = end
