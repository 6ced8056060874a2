"""An adapter of SDXL as a LoRA file for diffusers, or in kohya's naming for ComfyUI and A1111.

Both forms hold A' and s·B' of every layer, so that a loader has nothing left to scale: without alpha or metadata
each of them takes the scale for 1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from common.adapters.export import PlainLora, config_of, plain_layers
from common.errors import UserError
from common.weights import write_tensors

SdxlNaming = Literal["diffusers", "kohya"]
FILE_NAME = "pytorch_lora_weights.safetensors"  # what `load_lora_weights(directory)` looks for
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
_KOHYA_PREFIX = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
# The layers of a text encoder that loaders look for.
_TEXT_LAYER = re.compile(r"encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])")

# Kohya trains on Stability's own UNet, whose blocks are counted without regard to resolution. Within a block
# diffusers and Stability name the layers of attention alike.
_SGM_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def export_sdxl(
    components: Mapping[str, nn.Module], directory: str | Path, naming: SdxlNaming, adapter: str = "default"
) -> Path:
    """Write the adapter of a UNet, and of text encoders where they have one, as one LoRA file.

    Args:
        components: `unet`, `text_encoder`, `text_encoder_2` -> the model, wrapped by PEFT or with the adapter
            injected; those without an adapter are left out of the mapping.
        directory: where the file goes; made if absent.
        naming: `diffusers`: `unet.<module>.lora_A.weight`; `kohya`: `lora_unet_<block>.lora_down.weight` with the
            block names of Stability's code.
        adapter: which adapter.

    Returns:
        The file.

    Raises:
        UserError: for an adapter that is no plain LoRA, or a layer that has no name in this form.
    """
    layers = {}
    for component, model in components.items():
        assert component in COMPONENTS, component
        if config_of(model, adapter).modules_to_save:
            raise UserError(
                f"the {component} has modules that were trained whole (modules_to_save), for which a LoRA file has no "
                "place; export with --format peft"
            )
        layers[component] = plain_layers(model, adapter)
    if naming == "diffusers":
        weights, metadata = _diffusers_weights(layers), {"format": "pt"}
    else:
        unet: Any = components.get("unet")
        weights, metadata = _kohya_weights(layers, 2 if unet is None else int(unet.config.layers_per_block))
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory / FILE_NAME, weights, metadata)
    return directory / FILE_NAME


def _diffusers_weights(components: Mapping[str, Mapping[str, PlainLora]]) -> dict[str, Tensor]:
    weights = {}
    for component, layers in components.items():
        for name, layer in layers.items():
            key = f"{component}.{name if component == 'unet' else text_layer_name(name)}"
            weights[f"{key}.lora_A.weight"] = _kept(layer.a)
            weights[f"{key}.lora_B.weight"] = _kept(layer.b * layer.scaling)
            if layer.magnitude is not None:
                weights[f"{key}.lora_magnitude_vector"] = _kept(layer.magnitude)
    return weights


def _kohya_weights(
    components: Mapping[str, Mapping[str, PlainLora]], layers_per_block: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    everything = [layer for layers in components.values() for layer in layers.values()]
    if any(layer.magnitude is not None for layer in everything):
        raise UserError(
            "DoRA in kohya's naming is dropped by diffusers behind a warning, so that the pictures would be wrong; "
            "export with --format diffusers, or merge it (--to merged)"
        )
    # One alpha for all layers, equal to the rank of most: loaders mistake patterns of alphas.
    alpha = Counter(layer.rank for layer in everything).most_common(1)[0][0]
    weights = {}
    for component, layers in components.items():
        for name, layer in layers.items():
            key = kohya_name(component, name, layers_per_block)
            weights[f"{key}.lora_down.weight"] = _kept(layer.a)
            weights[f"{key}.lora_up.weight"] = _kept(layer.b * (layer.scaling * layer.rank / alpha))
            weights[f"{key}.alpha"] = torch.tensor(float(alpha))
    metadata = {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(alpha),
        "ss_network_alpha": str(float(alpha)),
        "ss_base_model_version": "sdxl_base_v1-0",  # by which A1111 knows for which model a file is
    }
    return weights, metadata


def kohya_name(component: str, name: str, layers_per_block: int = 2) -> str:
    """The name of a layer in kohya's files.

    Args:
        component: `unet`, `text_encoder` or `text_encoder_2`.
        name: the layer's name in the component, as diffusers and transformers have it.
        layers_per_block: of the UNet's configuration; 2 in SDXL.

    Raises:
        UserError: a layer that has no name there.
    """
    renamed = sgm_name(name, layers_per_block) if component == "unet" else text_layer_name(name)
    return _KOHYA_PREFIX[component] + renamed.replace(".", "_")


def sgm_name(name: str, layers_per_block: int = 2) -> str:
    """The name of one of the UNet's linear layers in Stability's code (and so in ComfyUI and A1111).

    `down_blocks.1.attentions.0` is `input_blocks.4.1`: block 0 is `conv_in`, and each block of a resolution has
    `layers_per_block` layers and a downsampler; `up_blocks.1.attentions.0` is `output_blocks.3.1`.

    Raises:
        UserError: a layer that has no name there.
    """
    if name in _SGM_OUTSIDE:
        return _SGM_OUTSIDE[name]
    if (found := _BLOCK.fullmatch(name)) is not None:
        way, kind, rest = found[1], found[3], found[5]
        at = int(found[2]) * (layers_per_block + 1) + int(found[4])
        block = f"input_blocks.{at + 1}" if way == "down" else f"output_blocks.{at}"
        number = 0 if kind == "resnets" else 1
    elif (found := _MIDDLE.fullmatch(name)) is not None:
        kind, rest = found[1], found[3]
        block, number = "middle_block", 1 if kind == "attentions" else 2 * int(found[2])
    else:
        raise _no_name(name)
    if kind == "resnets":
        if rest != "time_emb_proj":
            raise _no_name(name)
        rest = "emb_layers.1"
    return f"{block}.{number}.{rest}"


def text_layer_name(name: str) -> str:
    """The name of a text encoder's layer in LoRA files: `text_model.encoder.layers.0.self_attn.q_proj`.

    Since transformers 5.6 CLIPTextModel has no `text_model.` before its layers, CLIPTextModelWithProjection still
    has it; files have it always, and loaders take it away where it must go.

    Raises:
        UserError: a layer that LoRA files do not know.
    """
    bare = name.removeprefix("text_model.")
    if _TEXT_LAYER.fullmatch(bare) is None:
        raise UserError(
            f"layer {name} of a text encoder has no name in LoRA files, which know q_proj, k_proj, v_proj, out_proj, "
            "fc1 and fc2 of its blocks; export with --format peft"
        )
    return f"text_model.{bare}"


def _no_name(name: str) -> UserError:
    return UserError(
        f"layer {name} of the UNet has no name in kohya's files that loaders agree on; export with --format diffusers, "
        "or adapt the attention (to_q, to_k, to_v, to_out.0), proj_in, proj_out and ff only"
    )


def _kept(value: Tensor) -> Tensor:
    return value.detach().float().cpu().clone().contiguous()
