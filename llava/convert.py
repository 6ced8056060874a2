"""InternLM2 as a Llama: configuration and weights, without running code from the model's folder.

InternLM2 is Llama with other names, whose q, k and v are one matrix, grouped by key/value head. The map is exact.
Dimension letters: H query heads, G key/value heads, g = H/G, D head_dim, C hidden_size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import LlamaConfig

from common.errors import UserError
from llava.model_files import LazyTensor, Weights

INTERNLM2 = "internlm2"
_LAYER = r"model\.layers\.(\d+)\."
_NAMES = {
    r"model\.tok_embeddings\.weight": "model.embed_tokens.weight",
    r"model\.norm\.weight": "model.norm.weight",
    r"output\.weight": "lm_head.weight",
    _LAYER + r"attention_norm\.weight": r"model.layers.\1.input_layernorm.weight",
    _LAYER + r"ffn_norm\.weight": r"model.layers.\1.post_attention_layernorm.weight",
    _LAYER + r"attention\.wo\.(weight|bias)": r"model.layers.\1.self_attn.o_proj.\2",
    _LAYER + r"feed_forward\.w1\.weight": r"model.layers.\1.mlp.gate_proj.weight",
    _LAYER + r"feed_forward\.w3\.weight": r"model.layers.\1.mlp.up_proj.weight",
    _LAYER + r"feed_forward\.w2\.weight": r"model.layers.\1.mlp.down_proj.weight",
}
_QKV = re.compile(_LAYER + r"attention\.wqkv\.(weight|bias)")


def internlm2_config(config: Mapping[str, Any]) -> LlamaConfig:
    """The Llama configuration that computes what an InternLM2 configuration describes.

    Args:
        config: content of InternLM2's `config.json`.

    Raises:
        UserError: a key is missing, or a rotary scaling that InternLM2 does not have.
    """
    same = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "rms_norm_eps",
    )
    absent = [key for key in same if key not in config]
    if absent:
        raise UserError(f"the config.json of an InternLM2 model lacks {', '.join(absent)}; fetch it again")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(config.get("rope_theta", 10000))}
    scaling = config.get("rope_scaling")
    if scaling is not None:
        kind = scaling.get("type", scaling.get("rope_type"))
        if kind not in ("dynamic", "linear"):
            raise UserError(f"rope_scaling.type={kind} is not known for InternLM2; known: dynamic, linear")
        rope |= {"rope_type": kind, "factor": float(scaling["factor"])}
    return LlamaConfig(
        **{key: config[key] for key in same},
        num_key_value_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        hidden_act=config.get("hidden_act", "silu"),
        initializer_range=config.get("initializer_range", 0.02),
        attention_bias=config.get("bias", True),  # InternLM2's default; its MLP never has one
        mlp_bias=False,
        rope_parameters=rope,
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        bos_token_id=config.get("bos_token_id", 1),
        eos_token_id=config.get("eos_token_id", 2),
        pad_token_id=config.get("pad_token_id"),
    )


def internlm2_weights(weights: Weights, config: LlamaConfig) -> Weights:
    """InternLM2's tensors under Llama's names, still unread; a key that is not known stays as it is.

    Args:
        weights: of InternLM2.
        config: from `internlm2_config`.
    """
    groups = config.num_key_value_heads
    per_group = config.num_attention_heads // groups
    head_dim = config.hidden_size // config.num_attention_heads
    converted: Weights = {}
    for name, tensor in weights.items():
        packed = _QKV.fullmatch(name)
        if packed and tensor.shape[0] == groups * (per_group + 2) * head_dim:
            layer, kind = packed.groups()
            for letter, part in _split_qkv(tensor, groups, per_group, head_dim).items():
                converted[f"model.layers.{layer}.self_attn.{letter}_proj.{kind}"] = part
        else:
            converted[_rename(name)] = tensor
    return converted


def _split_qkv(packed: LazyTensor, groups: int, per_group: int, head_dim: int) -> dict[str, LazyTensor]:
    rest = packed.shape[1:]  # (C,) of a weight, () of a bias

    def part(start: int, stop: int) -> LazyTensor:
        def take(whole: Tensor) -> Tensor:
            # wqkv.view(G, g + 2, D, C): the g query heads of a group, then its key, then its value
            heads = whole.reshape(groups, per_group + 2, head_dim, *rest)[:, start:stop]
            return heads.reshape(-1, *rest).contiguous()

        return packed.split((groups * (stop - start) * head_dim, *rest), take)

    return {
        "q": part(0, per_group),
        "k": part(per_group, per_group + 1),
        "v": part(per_group + 1, per_group + 2),
    }


def _rename(name: str) -> str:
    for pattern, target in _NAMES.items():
        if re.fullmatch(pattern, name):
            return re.sub(pattern, target, name)
    return name
