"""The tiny SDXL as a single file in Stability's naming, the inverse of what diffusers does when it opens one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor

_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def write_single_file(folder: Path, file: Path) -> Path:
    """Write the pipeline in `folder` as one safetensors file."""
    whole: Any = StableDiffusionXLPipeline.from_pretrained(folder)
    state = {f"model.diffusion_model.{_unet_name(name)}": each for name, each in whole.unet.state_dict().items()}
    state |= _vae_state(whole.vae)
    for name, tensor in whole.text_encoder.state_dict().items():
        bare = name.removeprefix("text_model.")
        state[f"conditioner.embedders.0.transformer.text_model.{bare}"] = tensor
    state |= _open_clip_state(whole.text_encoder_2.state_dict())
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, file)
    return file


def _unet_name(name: str) -> str:
    for ours, theirs in _OUTSIDE.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        place = 1 if found[1] == "attentions" else 2 * int(found[2])
        return f"middle_block.{place}.{_inner(found[1], found[3])}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)", name)
    assert found is not None, name
    way, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if kind == "downsamplers":
        return f"input_blocks.{3 * (block + 1)}.0.op{rest.removeprefix('conv')}"
    if kind == "upsamplers":  # behind the attention of the block's last layer; of three blocks the last has neither
        return f"output_blocks.{3 * block + 2}.2.{rest}"
    place = f"input_blocks.{3 * block + layer + 1}" if way == "down" else f"output_blocks.{3 * block + layer}"
    return f"{place}.{int(kind == 'attentions')}.{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
    if kind == "attentions":
        return rest
    part, _, end = rest.rpartition(".")
    return f"{_RESNET[part]}.{end}"


def _vae_state(vae: Any) -> dict[str, Tensor]:
    highest, state = len(vae.config.block_out_channels) - 1, {}
    for name, tensor in vae.state_dict().items():
        new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{highest - int(m[1])}.block", new)
        new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{highest - int(m[1])}.upsample", new)
        if found := re.fullmatch(r"(.*)mid_block\.attentions\.0\.(.+)\.(weight|bias)", new):
            new = f"{found[1]}mid.attn_1.{_VAE_ATTENTION[found[2]]}.{found[3]}"
            tensor = tensor[:, :, None, None] if tensor.dim() == 2 else tensor
        state[f"first_stage_model.{new}"] = tensor
    return state


def _open_clip_state(own: dict[str, Tensor]) -> dict[str, Tensor]:
    own, state, prefix = dict(own), {}, "conditioner.embedders.1.model."
    state[f"{prefix}text_projection"] = own.pop("text_projection.weight").T
    own = {name.removeprefix("text_model."): tensor for name, tensor in own.items()}
    state[f"{prefix}token_embedding.weight"] = own.pop("embeddings.token_embedding.weight")
    state[f"{prefix}positional_embedding"] = own.pop("embeddings.position_embedding.weight")
    for end in ("weight", "bias"):
        state[f"{prefix}ln_final.{end}"] = own.pop(f"final_layer_norm.{end}")
    layers = {int(name.split(".")[2]) for name in own if name.startswith("encoder.layers.")}
    for i in layers:
        theirs, ours = f"{prefix}transformer.resblocks.{i}.", f"encoder.layers.{i}."
        for end in ("weight", "bias"):
            parts = [own.pop(f"{ours}self_attn.{x}_proj.{end}") for x in "qkv"]
            state[f"{theirs}attn.in_proj_{end}"] = torch.cat(parts)
            for name, new in _OPEN_CLIP.items():
                state[f"{theirs}{new}.{end}"] = own.pop(f"{ours}{name}.{end}")
    assert not [name for name in own if "position_ids" not in name], own.keys()
    return state
