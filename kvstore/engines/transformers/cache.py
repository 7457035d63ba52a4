"""The cache of transformers' DeepSeek-V4 in V4's own formats, and its rows and states as the store's arrays.

Entries are quantised and dequantised where they enter the cache, in hit and miss alike, as DeepSeek's reference code
does: what is stored is what the model attends to, so packed bytes resume bit for bit (V4-CACHE section 9).

transformers' cache never changes a tensor in place, so a `Snapshot` is a handful of references: taking one while
passing a boundary costs microseconds, and its bytes are packed later, off the critical path.

Arrays at the store's interface (uint8): rows component (blocks, layers having it, section bytes), state component
(layers having it, section bytes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DeepseekV4Config, DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4CSACache, DeepseekV4HCACache

from kvstore.codec.v4_formats import INDEXER_FP8, INDEXER_MXFP4, MAIN, EntryCodec
from kvstore.core.errors import InvalidLayout
from kvstore.core.layout import Group, LayerKind, ModelLayout

Bytes = NDArray[np.uint8]

_KINDS = {
    "sliding_attention": LayerKind.SWA,
    "compressed_sparse_attention": LayerKind.CSA,
    "heavily_compressed_attention": LayerKind.HCA,
}
_ROWS = {"csa.main": "compressor", "csa.indexer": "indexer", "hca.main": "compressor"}  # transformers' names
_OVERLAPS = {"csa.overlap": "compressor", "csa.indexer_overlap": "indexer"}
_CODECS = {codec.data_bytes: codec for codec in (MAIN, INDEXER_MXFP4, INDEXER_FP8)}


@dataclass(frozen=True, slots=True)
class LayerSnapshot:
    """One layer's cache: values, not bytes. Tensors are shared with the cache and never written."""

    window: Tensor  # (1, 1, rows, 512)
    rows: Mapping[str, Tensor]  # transformers' name -> (1, entries, width)
    overlaps: Mapping[str, tuple[Tensor, Tensor]]  # kv, and gate with bias, (1, 4, width) each
    # Projections of the tokens behind the last whole entry: kv, and gate without bias. None at a block's end.
    tails: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A model's whole cache, at a block boundary but for a handoff.

    `tokens` is where computing goes on. For a replay the rows may reach beyond it: entries that are already there
    are kept, and those computed again are dropped.
    """

    tokens: int
    layers: tuple[LayerSnapshot, ...]


class CacheForm:
    """How one model's cache is kept, cut into sections and put together again. Stateless after construction."""

    def __init__(self, config: DeepseekV4Config, layout: ModelLayout, dtype: torch.dtype = torch.float32) -> None:
        """InvalidLayout where the layout describes another model than the config."""
        kinds = tuple(_KINDS[kind] for kind in config.layer_types or ())
        if kinds != tuple(layer.kind for layer in layout.layers) or layout.state is None:
            raise InvalidLayout(
                f"layout {layout.model} has other layers than the model: describe {len(kinds)} of its own"
            )
        if layout.window_rows != config.sliding_window - 1:
            raise InvalidLayout(f"window_rows={layout.window_rows}, but transformers keeps {config.sliding_window - 1}")
        self.layout = layout
        self.dtype = dtype
        self.kinds = kinds
        self._config = config
        self._state: Group = layout.state
        indexers = {part.data_bytes for part in layout.rows.sections if part.component == "csa.indexer"}
        self._indexer = _CODECS[indexers.pop()] if indexers else INDEXER_MXFP4

    def new_cache(self) -> DynamicCache:
        """An empty cache that quantises what enters it."""
        cache = DynamicCache(config=self._config)
        cache.layers = [self._new_layer(kind) for kind in self.kinds]
        return cache

    def snapshot(self, cache: DynamicCache, tokens: int) -> Snapshot:
        """What the cache holds now; it stands at `tokens`."""
        assert cache.get_seq_length() == tokens
        layers = cast("list[_Layer]", cache.layers)  # they are those of `new_cache` or `resume`
        return Snapshot(tokens, tuple(_layer_snapshot(layer) for layer in layers))

    def resume(self, snapshot: Snapshot) -> DynamicCache:
        """A cache that goes on from a snapshot. The snapshot stays as it is."""
        cache = DynamicCache(config=self._config)
        cache.layers = [
            self._filled(kind, kept, snapshot.tokens) for kind, kept in zip(self.kinds, snapshot.layers, strict=True)
        ]
        return cache

    def export_rows(self, snapshot: Snapshot, first_block: int, end_block: int) -> dict[str, Bytes]:
        """Rows of blocks [first_block, end_block), which lie below the snapshot."""
        assert 0 <= first_block <= end_block <= snapshot.tokens // self.layout.block_tokens
        arrays = {}
        for component in self.layout.rows.components():
            parts = []
            for index, entries, codec in self._sections(self.layout.rows, component):
                rows = snapshot.layers[index].rows[_ROWS[component]][0, first_block * entries : end_block * entries]
                parts.append(codec.to_sections(rows.reshape(end_block - first_block, entries, codec.width)))
            arrays[component] = torch.stack(parts, 1).numpy()
        return arrays

    def export_state(self, snapshot: Snapshot) -> dict[str, Bytes]:
        """The state at the snapshot's boundary."""
        assert snapshot.tokens % self.layout.block_tokens == 0
        arrays = {}
        for component in self._state.components():
            parts = []
            for index in self._layers_with(self._state, component):
                layer = snapshot.layers[index]
                if component == "window":
                    parts.append(MAIN.to_sections(layer.window[0]))
                else:
                    kv_and_gate = torch.stack(layer.overlaps[_OVERLAPS[component]]).to(self.dtype).contiguous()
                    parts.append(kv_and_gate.view(torch.uint8).view(1, -1))
            arrays[component] = torch.cat(parts).numpy()
        return arrays

    def load(self, tokens: int, rows: Mapping[str, Bytes], state: Mapping[str, Bytes]) -> Snapshot:
        """The snapshot at `tokens` from the rows of all blocks below it and the state at it. Copies."""
        entries = self.load_rows(rows)
        layers = []
        for index in range(len(self.kinds)):
            window = MAIN.from_sections(self._bytes(state, self._state, "window", index)[None], self.dtype)[None]
            overlaps = {}
            for component, name in _OVERLAPS.items():
                if index in self._layers_with(self._state, component):
                    part = self._bytes(state, self._state, component, index).view(self.dtype)
                    kv, gate = part.view(2, 1, self.layout.layers[index].ratio, -1)
                    overlaps[name] = (kv, gate)
            layers.append(LayerSnapshot(window, entries[index], overlaps))
        return Snapshot(tokens, tuple(layers))

    def load_for_replay(self, compute_from: int, rows: Mapping[str, Bytes]) -> Snapshot:
        """A snapshot at `compute_from` with the rows of more blocks and no state, to rebuild the state from.

        Windows are zero, which is wrong context; after one window a layer, wrong values have left them all.
        """
        window = torch.zeros(1, 1, min(compute_from, self.layout.window_rows), MAIN.width, dtype=self.dtype)
        return Snapshot(compute_from, tuple(LayerSnapshot(window, part, {}) for part in self.load_rows(rows)))

    def load_rows(self, rows: Mapping[str, Bytes]) -> list[dict[str, Tensor]]:
        """Each layer's entries from the rows of blocks from position 0: transformers' name -> (1, entries, width)."""
        entries: list[dict[str, Tensor]] = [{} for _ in self.kinds]
        for component in self.layout.rows.components():
            array = rows[component]
            for place, (index, _, codec) in enumerate(self._sections(self.layout.rows, component)):
                sections = torch.from_numpy(np.array(array[:, place]))
                values = codec.from_sections(sections, self.dtype)
                entries[index][_ROWS[component]] = values.view(1, -1, codec.width)
        return entries

    def codecs(self, kind: LayerKind) -> Mapping[str, EntryCodec]:
        """Formats of a layer's compressed entries, by transformers' names."""
        if kind is LayerKind.SWA:
            return {}
        return {"compressor": MAIN} if kind is LayerKind.HCA else {"compressor": MAIN, "indexer": self._indexer}

    def _sections(self, group: Group, component: str) -> list[tuple[int, int, EntryCodec]]:
        """Layer, entries a block and codec of a rows component, in layer order."""
        found = (part for part in group.sections if part.component == component)
        return [(part.layer, part.entries, _CODECS[part.data_bytes]) for part in found]

    def _layers_with(self, group: Group, component: str) -> list[int]:
        return [part.layer for part in group.sections if part.component == component]

    def _bytes(self, state: Mapping[str, Bytes], group: Group, component: str, layer: int) -> Tensor:
        return torch.from_numpy(np.array(state[component][self._layers_with(group, component).index(layer)]))

    def _filled(self, kind: LayerKind, kept: LayerSnapshot, tokens: int) -> _Layer:
        layer = self._new_layer(kind)
        layer.lazy_initialization(kept.window, kept.window)
        layer.keys = layer.values = kept.window  # one storage, as K = V
        layer.cumulative_length = tokens
        if isinstance(layer, _QuantisedRows):
            layer.compressed_kv.update(kept.rows)
            layer.entry_count.update(dict.fromkeys(kept.rows, tokens // layer.compress_rate))
            for name, (kv, gate) in kept.tails.items():
                layer.buffer_kv[name], layer.buffer_gate[name] = kv, gate
        if isinstance(layer, _Sparse):
            for name, (kv, gate) in kept.overlaps.items():
                layer.overlap_kv[name], layer.overlap_gate[name] = kv, gate
        return layer

    def _new_layer(self, kind: LayerKind) -> _Layer:
        if kind is LayerKind.SWA:
            return _SlidingWindow(sliding_window=self._config.sliding_window)
        layer = _Sparse(self._config) if kind is LayerKind.CSA else _Heavily(self._config)
        layer.codecs = self.codecs(kind)
        return layer


class _QuantisedWindow:
    """Every entry of the raw window passes through its stored format first."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        entries = MAIN.quantise(key_states)
        updated: tuple[Tensor, Tensor] = super().update(entries, entries, *args, **kwargs)  # type: ignore[misc]
        return updated


class _QuantisedRows(_QuantisedWindow):
    """Compressed entries pass through their formats; entries that are already there are kept (replay)."""

    codecs: Mapping[str, EntryCodec]
    compress_rate: int
    compressed_kv: dict[str, Tensor | None]
    entry_count: dict[str, int]

    def update_compressor_states(self, name: str, compressed: Tensor) -> Tensor:
        # Attention must see as many entries as in the cold run, not all that are stored: widths change sums.
        count = self.entry_count[name] + compressed.shape[1]
        stored = self.compressed_kv[name]
        if stored is not None and stored.shape[1] >= count:
            self.entry_count[name] = count
            return stored[:, :count]
        entries = self.codecs[name].quantise(compressed)
        updated: Tensor = super().update_compressor_states(name, entries)  # type: ignore[misc]
        return updated


# transformers registers cache layers by their `_layer_type`, so each needs one of its own.
class _SlidingWindow(_QuantisedWindow, DynamicSlidingWindowLayer):  # type: ignore[no-untyped-call]
    _layer_type = "kvstore_sliding_attention"


class _Heavily(_QuantisedRows, DeepseekV4HCACache):  # type: ignore[no-untyped-call]
    _layer_type = "kvstore_heavily_compressed_attention"


class _Sparse(_QuantisedRows, DeepseekV4CSACache):  # type: ignore[no-untyped-call]
    _layer_type = "kvstore_compressed_sparse_attention"


_Layer = _SlidingWindow | _Heavily | _Sparse


def _layer_snapshot(layer: _Layer) -> LayerSnapshot:
    rows: dict[str, Tensor] = {}
    overlaps: dict[str, tuple[Tensor, Tensor]] = {}
    tails: dict[str, tuple[Tensor, Tensor]] = {}
    if isinstance(layer, _Sparse | _Heavily):
        rows = {name: entries for name, entries in layer.compressed_kv.items() if entries is not None}
        tails = _pairs(layer.buffer_kv, layer.buffer_gate)
    if isinstance(layer, _Sparse):
        overlaps = _pairs(layer.overlap_kv, layer.overlap_gate)
    assert layer.keys is not None  # set by the first token
    return LayerSnapshot(layer.keys, rows, overlaps, tails)


def _pairs(kvs: Mapping[str, Tensor | None], gates: Mapping[str, Tensor | None]) -> dict[str, tuple[Tensor, Tensor]]:
    """Those that are there and not empty."""
    found = {}
    for name, kv in kvs.items():
        gate = gates[name]
        if kv is not None and gate is not None and kv.shape[1]:
            found[name] = (kv, gate)
    return found
