"""DeepSeek-V4's own cache formats in torch: main entries, indexer keys, and the sections a store keeps of them.

    main     512 values   448 e4m3 + 64 bf16 (rope)    7 UE8M0 scales, one per 64, and a pad byte    576 + 8 bytes
    mxfp4    128 values   128 e2m1, low nibble first   4 UE8M0 scales, one per 32                     64 + 4 bytes
    fp8      128 values   128 e4m3                     1 fp32 scale, a power of two                  128 + 4 bytes

A section is the data of all its entries, then the scales of all of them (DESIGN section 3). A UE8M0 byte b means
2^(b - 127); the scale is the smallest power of two that brings a group's largest magnitude to 448 (e4m3) or 6
(e2m1), where that magnitude counts as at least 1e-4, or 6 * 2^-126. Rounding is to nearest, ties to even, as the
hardware's conversions do. (V4-CACHE section 7; vLLM's fused_compress_quant_cache.)

Packing is value-idempotent: `quantise(quantise(x))` is `quantise(x)`, bit for bit, signed zeros included. The bytes of
`pack(x)` and `pack(quantise(x))` may differ (a scale can drop by one step), so bytes that are compared or
checksummed must always be made from quantised values. Values must be finite and at most 2^127, so that rounding up
stays in fp32's range. Pure functions; any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MAIN_WIDTH = 512
NOPE_WIDTH = 448  # quantised; the 64 that follow carry RoPE and stay bf16
INDEXER_WIDTH = 128

_E4M3_GROUP = 64
_E2M1_GROUP = 32
_E4M3_FLOOR = 1e-4  # the reference's act_quant
_E2M1_FLOOR = 6.0 * 2.0**-126
_MANTISSA_BITS = 23  # of fp32
# 448 = 1.75 * 2^8 and 6 = 1.5 * 2^2: above these mantissas the scale needs one more power of two. Added to the bits
# of a magnitude they carry into its exponent exactly then, so ceil(log2(amax / limit)) needs no rounding log2.
_E4M3_CARRY, _E4M3_EXPONENT = 0x7FFFFF - 0x600000, 8
_E2M1_CARRY, _E2M1_EXPONENT = 0x7FFFFF - 0x400000, 2
_E2M1_VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@dataclass(frozen=True, slots=True)
class EntryCodec:
    """One format: `pack` makes data and scale bytes of entries, `unpack` the values that they mean."""

    name: str
    width: int  # values an entry
    data_bytes: int  # an entry
    scale_bytes: int  # an entry
    pack: Callable[[Tensor], tuple[Tensor, Tensor]]  # (n, width) -> uint8 (n, data_bytes), (n, scale_bytes)
    unpack: Callable[[Tensor, Tensor, torch.dtype], Tensor]  # the reverse, in the dtype asked for
    quantise: Callable[[Tensor], Tensor]  # (..., width) -> the same shape and dtype, values that packing keeps

    @property
    def entry_bytes(self) -> int:
        return self.data_bytes + self.scale_bytes

    def to_sections(self, entries: Tensor) -> Tensor:
        """Entries (sections, n, width) of any float dtype -> uint8 (sections, n * entry_bytes)."""
        sections, count, width = entries.shape
        data, scales = self.pack(entries.reshape(sections * count, width))
        return torch.cat(
            [data.view(sections, count * self.data_bytes), scales.view(sections, count * self.scale_bytes)], 1
        )

    def from_sections(self, sections: Tensor, dtype: torch.dtype) -> Tensor:
        """The reverse: uint8 (sections, n * entry_bytes) -> entries (sections, n, width)."""
        count = sections.shape[1] // self.entry_bytes
        if count * self.entry_bytes != sections.shape[1]:
            raise ValueError(f"{sections.shape[1]} bytes are not whole {self.name} entries of {self.entry_bytes}")
        entries = sections.shape[0] * count
        data = sections[:, : count * self.data_bytes].reshape(entries, self.data_bytes)
        scales = sections[:, count * self.data_bytes :].reshape(entries, self.scale_bytes)
        return self.unpack(data, scales, dtype).view(sections.shape[0], count, self.width)


def pack_main(entries: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 512) -> uint8 (n, 576), (n, 8)."""
    count = entries.shape[0]
    codes, scale = _encode_e4m3(_grouped(entries[:, :NOPE_WIDTH], _E4M3_GROUP))
    rope = entries[:, NOPE_WIDTH:].float().to(torch.bfloat16)
    data = torch.cat([codes.view(torch.uint8).view(count, NOPE_WIDTH), rope.view(torch.uint8)], 1)
    scales = torch.zeros(count, 8, dtype=torch.uint8)
    scales[:, :7] = scale.view(count, 7)
    return data, scales


def unpack_main(data: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 (n, 576), (n, 8) -> (n, 512)."""
    count = data.shape[0]
    codes = data[:, :NOPE_WIDTH].reshape(count, NOPE_WIDTH // _E4M3_GROUP, _E4M3_GROUP)
    out = torch.empty(count, MAIN_WIDTH, dtype=torch.float32)
    torch.mul(_e4m3_values(codes), _power_of_two(scales[:, :7, None]), out=out[:, :NOPE_WIDTH].view(codes.shape))
    out[:, NOPE_WIDTH:] = data[:, NOPE_WIDTH:].contiguous().view(torch.bfloat16)
    return out.to(dtype)


def quantise_main(entries: Tensor) -> Tensor:
    """(..., 512) -> the same shape and dtype: what `unpack_main(*pack_main(entries))` would give, without the bytes."""
    flat = entries.reshape(-1, MAIN_WIDTH)
    codes, scale = _encode_e4m3(_grouped(flat[:, :NOPE_WIDTH], _E4M3_GROUP))
    out = torch.empty(flat.shape, dtype=torch.float32)
    torch.mul(_e4m3_values(codes), _power_of_two(scale), out=out[:, :NOPE_WIDTH].view(codes.shape))
    out[:, NOPE_WIDTH:] = flat[:, NOPE_WIDTH:].float().to(torch.bfloat16)
    return out.to(entries.dtype).view(entries.shape)


def pack_mxfp4(keys: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 128) -> uint8 (n, 64), (n, 4)."""
    codes, scale = _encode_e2m1(_grouped(keys, _E2M1_GROUP))
    pairs = codes.view(-1, INDEXER_WIDTH // 2, 2)
    return pairs[..., 0] | (pairs[..., 1] << 4), scale.view(-1, INDEXER_WIDTH // _E2M1_GROUP)


def unpack_mxfp4(data: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 (n, 64), (n, 4) -> (n, 128)."""
    codes = torch.stack([data & 15, data >> 4], -1)
    values = _e2m1_values(codes).view(-1, INDEXER_WIDTH // _E2M1_GROUP, _E2M1_GROUP)
    return (values * _power_of_two(scales[..., None])).view(-1, INDEXER_WIDTH).to(dtype)


def quantise_mxfp4(keys: Tensor) -> Tensor:
    """(..., 128) -> the same shape and dtype, values that `pack_mxfp4` keeps."""
    codes, scale = _encode_e2m1(_grouped(keys.reshape(-1, INDEXER_WIDTH), _E2M1_GROUP))
    return (_e2m1_values(codes) * _power_of_two(scale)).view(keys.shape).to(keys.dtype)


def pack_fp8_key(keys: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 128) -> uint8 (n, 128), (n, 4): the scale is an fp32 number, a power of two as UE8M0 demands."""
    codes, scale = _encode_e4m3(_grouped(keys, INDEXER_WIDTH))
    return codes.view(torch.uint8).view(-1, INDEXER_WIDTH), _power_of_two(scale).view(-1, 1).view(torch.uint8)


def unpack_fp8_key(data: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 (n, 128), (n, 4) -> (n, 128)."""
    return (_e4m3_values(data) * scales.contiguous().view(torch.float32)).to(dtype)


def quantise_fp8_key(keys: Tensor) -> Tensor:
    """(..., 128) -> the same shape and dtype, values that `pack_fp8_key` keeps."""
    codes, scale = _encode_e4m3(_grouped(keys.reshape(-1, INDEXER_WIDTH), INDEXER_WIDTH))
    return (_e4m3_values(codes) * _power_of_two(scale)).view(keys.shape).to(keys.dtype)


MAIN = EntryCodec("main", MAIN_WIDTH, 576, 8, pack_main, unpack_main, quantise_main)
INDEXER_MXFP4 = EntryCodec("mxfp4", INDEXER_WIDTH, 64, 4, pack_mxfp4, unpack_mxfp4, quantise_mxfp4)
INDEXER_FP8 = EntryCodec("fp8", INDEXER_WIDTH, 128, 4, pack_fp8_key, unpack_fp8_key, quantise_fp8_key)


def _grouped(values: Tensor, group: int) -> Tensor:
    return values.float().reshape(values.shape[0], values.shape[1] // group, group)


def _scale_byte(groups: Tensor, floor: float, carry: int, exponent: int) -> Tensor:
    """Biased exponents of the groups' scales, int32, last axis kept as 1."""
    largest = groups.abs().amax(-1, keepdim=True).clamp_min_(floor)
    return ((largest.view(torch.int32) + carry) >> _MANTISSA_BITS) - exponent


def _power_of_two(biased: Tensor) -> Tensor:
    """fp32 2^(biased - 127) from biased exponents of 1 to 254."""
    return (biased.to(torch.int32) << _MANTISSA_BITS).view(torch.float32)


def _encode_e4m3(groups: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 (n, groups, size) -> e4m3 codes of that shape, biased scale exponents uint8 (n, groups, 1)."""
    biased = _scale_byte(groups, _E4M3_FLOOR, _E4M3_CARRY, _E4M3_EXPONENT)
    return (groups * _power_of_two(254 - biased)).to(torch.float8_e4m3fn), biased.to(torch.uint8)


def _e4m3_values(codes: Tensor) -> Tensor:
    """fp32 values of e4m3 codes. Their bits, moved to fp16's places, mean 2^-8 of it: ten times torch's own cast."""
    moved = codes.view(torch.int8).to(torch.int16).mul_(128)  # sign extended, so bit 14 copies the sign
    return moved.bitwise_and_(~0x4000).view(torch.float16).float().mul_(256.0)


def _encode_e2m1(groups: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 (n, groups, size) -> uint8 codes of that shape, biased scale exponents uint8 (n, groups, 1)."""
    biased = _scale_byte(groups, _E2M1_FLOOR, _E2M1_CARRY, _E2M1_EXPONENT)
    scaled = groups * _power_of_two(254 - biased)
    magnitude = scaled.abs()
    # the code is the least of three straight lines, one per binade: steps of 0.5 below 2, of 1 below 4, of 2 above
    code = torch.minimum((magnitude * 2).round_(), magnitude.round().add_(2))
    code = torch.minimum(code, (magnitude * 0.5).round_().add_(4)).to(torch.uint8)
    return code | (torch.signbit(scaled).to(torch.uint8) << 3), biased.to(torch.uint8)


def _e2m1_values(codes: Tensor) -> Tensor:
    return _E2M1_VALUES.index_select(0, codes.reshape(-1).int()).view(codes.shape)
