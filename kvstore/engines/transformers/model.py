"""The demo's model: DeepSeek-V4's real layers at its real cache widths, small elsewhere, with seeded random weights.

Configuration D of V4-CACHE section 9: [SWA, CSA, HCA], 2.5 M parameters, about 0.8 s of one core for 2,048 tokens.
32 index heads keep the top-k free of exact-zero ties, whose breaking would depend on tensor widths.
"""

from __future__ import annotations

import torch
import transformers
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

from kvstore.core.layout import ModelLayout
from kvstore.core.presets import v4_demo

SWA = "sliding_attention"
CSA = "compressed_sparse_attention"
HCA = "heavily_compressed_attention"

DEMO_VOCAB = 2048
_SCALES = 0.5  # hyper-connection scales, and the deviation of sinks and position biases
_VECTOR_DEVIATION = 0.1

_DTYPE_NAMES = {torch.float32: "fp32", torch.float64: "fp64"}


def demo_config() -> DeepseekV4Config:
    """Configuration D."""
    return DeepseekV4Config(
        vocab_size=DEMO_VOCAB,
        hidden_size=128,
        moe_intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=512,
        q_lora_rank=64,
        num_experts_per_tok=2,
        n_routed_experts=2,
        n_shared_experts=1,
        layer_types=[SWA, CSA, HCA],
        mlp_layer_types=["hash_moe", "moe", "moe"],
        partial_rotary_factor=0.125,  # 64 of 512
        sliding_window=128,
        o_groups=2,
        o_lora_rank=128,
        index_n_heads=32,
        index_head_dim=128,
        index_topk=512,
        hc_mult=2,
        max_position_embeddings=65536,
        rope_parameters={
            "rope_type": "yarn",
            "factor": 16.0,
            "beta_fast": 32,
            "beta_slow": 1,
            "original_max_position_embeddings": 65536,
        },
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=1,
    )


def build_demo_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> DeepseekV4ForCausalLM:
    """The model with random weights that depend on `seed` only; ready for inference on the CPU.

    transformers' own initialisation (deviation 0.02, zero sinks, every token to expert 0) would make all of
    attention nearly the same number, and a lost window would not show.
    """
    config = demo_config()
    config._attn_implementation = "eager"  # the only one that DeepSeek-V4 has
    torch.manual_seed(seed)
    model = DeepseekV4ForCausalLM(config)
    model.train(False)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name and weight.ndim == 1:
                continue
            if name.endswith("scale"):
                weight.fill_(_SCALES)
            else:
                weight.copy_(torch.randn(weight.shape, generator=generator) * _deviation(name, weight))
        for name, table in model.named_buffers():
            if name.endswith("tid2eid"):  # token id to expert, of hash-routed layers
                experts = torch.randint(0, config.n_routed_experts, table.shape, generator=generator)
                table.copy_(experts.to(table.dtype))
    model.to(dtype)  # type: ignore[arg-type] # its wrapper forgets the instance
    if dtype is torch.float64:
        model.set_experts_implementation("eager")  # the grouped matmul knows no fp64
    return model


def demo_layout(seed: int = 0, dtype: torch.dtype = torch.float32) -> ModelLayout:
    """Layout of `build_demo_model(seed, dtype)`. Bits depend on builds and the CPU's instructions: both are named."""
    name = _DTYPE_NAMES[dtype]
    builds = (
        f"transformers {transformers.__version__}/torch {torch.__version__}/{torch.backends.cpu.get_cpu_capability()}"
    )
    return v4_demo(f"seed-{seed}", numerics=f"canonical/{name}/{builds}", overlap_dtype=name)


def _deviation(name: str, weight: torch.Tensor) -> float:
    if "position_bias" in name or "sinks" in name:
        return _SCALES
    return float(weight.shape[-1] ** -0.5) if weight.ndim >= 2 else _VECTOR_DEVIATION
