"""The models that can be counted without their weights: published architectures, or a folder's `config.json`.

Everything is built on the meta device, where a tensor has a shape and no memory.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from common.adapters import GOAT_TABLE_1_PARAMETERS
from common.errors import UserError
from common.words import did_you_mean

Kind = Literal["text", "pictures", "unet", "llava", "other"]

# Layers that the papers adapt, by the names that transformers and diffusers give them.
CLIP_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
LLAMA_LAYERS = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")  # [M] Table 4
ROBERTA_LAYERS = ("query", "key", "value", "intermediate.dense", "output.dense")  # the last also attention's
UNET_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")  # [M] Table 6
# [M] B.2: every linear layer of the language model, and by the names it has for itself those of the tower
LLAVA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "out_proj", "fc1", "fc2")
_PRESETS = (CLIP_LAYERS, LLAMA_LAYERS, ROBERTA_LAYERS, UNET_LAYERS)

_VIT_L_336: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
_LLAMA_2_7B: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
}
_LLAMA_3_8B: dict[str, Any] = {
    **_LLAMA_2_7B,
    "vocab_size": 128_256,
    "intermediate_size": 14_336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
_INTERNLM2_7B: dict[str, Any] = {**_LLAMA_3_8B, "vocab_size": 92_544, "max_position_embeddings": 32_768}


@dataclass(frozen=True)
class PaperTotal:
    """What a paper divides by in a column "# Params (%)".

    Args:
        parameters: the denominator.
        table: whose column it is.
    """

    parameters: int
    table: str


@dataclass(frozen=True)
class Architecture:
    """A model without weights.

    Args:
        name: as on the command line.
        title: what it is.
        build: makes it; called under `torch.device("meta")`.
        kind: what its forward takes.
        targets: layers that are adapted where none are named; empty: they must be named.
        paper: the denominator of a paper's percent column, where one exists.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    kind: Kind
    targets: tuple[str, ...]
    paper: PaperTotal | None = None

    def make(self) -> nn.Module:
        """The model on the meta device, frozen, in float32 and evaluation mode (it has no dropout of its own)."""
        with torch.device("meta"):
            return self.build().requires_grad_(False).eval()


def _transformers(model_class: str, config_class: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        return getattr(transformers, model_class)(getattr(transformers, config_class)(**settings))

    return build


def _clip(**settings: Any) -> Callable[[], nn.Module]:
    return _transformers("CLIPVisionModelWithProjection", "CLIPVisionConfig", **settings)


def _llama(**settings: Any) -> Callable[[], nn.Module]:
    return _transformers("LlamaForCausalLM", "LlamaConfig", tie_word_embeddings=False, **settings)


def _llava(**text: Any) -> Callable[[], nn.Module]:
    """CLIP ViT-L/14-336 without the layer that nothing reads (features of layer -2), a projector, a language model."""

    def build() -> nn.Module:
        vision = transformers.CLIPVisionConfig(**{**_VIT_L_336, "num_hidden_layers": 23})
        config = transformers.LlavaConfig(
            vision_config=vision,
            text_config=transformers.LlamaConfig(tie_word_embeddings=False, **text),
            image_token_index=text["vocab_size"] - 1,
            vision_feature_layer=-1,
        )
        return transformers.LlavaForConditionalGeneration(config)

    return build


def _sdxl_unet() -> nn.Module:
    return _diffusers_class("UNet2DConditionModel")(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


MODELS: Mapping[str, Architecture] = MappingProxyType(
    {
        model.name: model
        for model in (
            Architecture(
                "clip-vit-b-32",
                "CLIP ViT-B/32, vision tower with its projection",
                _clip(
                    hidden_size=768,
                    intermediate_size=3072,
                    num_hidden_layers=12,
                    num_attention_heads=12,
                    image_size=224,
                    patch_size=32,
                    projection_dim=512,
                ),
                "pictures",
                CLIP_LAYERS,
                PaperTotal(GOAT_TABLE_1_PARAMETERS, "[G] Table 1"),
            ),
            Architecture(
                "clip-vit-l-14-336",
                "CLIP ViT-L/14 at 336 px, vision tower with its projection",
                _clip(**_VIT_L_336),
                "pictures",
                CLIP_LAYERS,
            ),
            Architecture(
                "llama-3-8b",
                "LLaMA-3-8B",
                _llama(**_LLAMA_3_8B),
                "text",
                LLAMA_LAYERS,
            ),
            Architecture(
                "llama-2-7b",
                "LLaMA-2-7B",
                _llama(**_LLAMA_2_7B),
                "text",
                LLAMA_LAYERS,
            ),
            Architecture(
                "internlm2-7b",
                "InternLM2-7B, written as a LLaMA (q, k and v apart)",
                _llama(**_INTERNLM2_7B),
                "text",
                LLAMA_LAYERS,
            ),
            Architecture(
                "roberta-large",
                "RoBERTa-large with its pooler",
                _transformers(
                    "RobertaModel",
                    "RobertaConfig",
                    vocab_size=50_265,
                    hidden_size=1024,
                    intermediate_size=4096,
                    num_hidden_layers=24,
                    num_attention_heads=16,
                    max_position_embeddings=514,
                    type_vocab_size=1,
                ),
                "text",
                ROBERTA_LAYERS,
                # the weights of the blocks and the word embedding, 12·L·h² + V·h; it gives every row of the table
                PaperTotal(12 * 24 * 1024**2 + 50_265 * 1024, "[G] Table 4"),
            ),
            *(
                Architecture(
                    f"llava-{name}",
                    f"LLaVA-1.5 with {title}: CLIP ViT-L/14-336 (23 layers), projector and language model",
                    _llava(**text),
                    "llava",
                    LLAVA_LAYERS,
                )
                for name, title, text in (
                    ("llama-3-8b", "LLaMA-3-8B", _LLAMA_3_8B),
                    ("internlm2-7b", "InternLM2-7B", _INTERNLM2_7B),
                    ("vicuna-7b", "Vicuna-7B", _LLAMA_2_7B),
                )
            ),
            Architecture("sdxl-unet", "the UNet of SDXL base 1.0 at 1024 px", _sdxl_unet, "unet", UNET_LAYERS),
        )
    }
)


def find_model(name: str) -> Architecture:
    """An architecture by name, or that of a folder with a `config.json` of transformers or diffusers.

    Raises:
        UserError: neither; a config that cannot be read or that needs code of its own.
    """
    if name in MODELS:
        return MODELS[name]
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"--model={name} is neither a known model nor a folder with a config.json; {did_you_mean(name, MODELS)}"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--model={name}: the folder has no config.json; name the folder of a saved model") from None
    except (OSError, ValueError) as error:
        raise UserError(f"--model={name}: {folder / 'config.json'} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"--model={name}: {folder / 'config.json'} holds no object with keys")
    return _in_folder(name, folder, config)


def _in_folder(name: str, folder: Path, config: dict[str, Any]) -> Architecture:
    if "_class_name" in config:
        build: Callable[[], nn.Module] = functools.partial(_from_diffusers, name, config)
    else:
        build = functools.partial(_from_transformers, name, folder)
    with torch.device("meta"):
        try:
            model = build()
        except (ValueError, TypeError, KeyError, AttributeError, OSError, StrictDataclassError) as error:
            if isinstance(error, UserError):
                raise
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"--model={name}: no model can be built from its config.json: {reason}") from error
    kind = _kind(model)
    # several towers share names of layers, so that the papers' sets would adapt half of each
    targets = () if kind in ("llava", "other") else _preset(linear_layers(model))
    return Architecture(folder.resolve().name, f"{type(model).__name__} of {name}", build, kind, targets)


def linear_layers(model: nn.Module) -> list[str]:
    """The names of all linear layers."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def _from_transformers(name: str, folder: Path) -> nn.Module:
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    classes = config.architectures or []
    model_class = getattr(transformers, classes[0], None) if classes else None
    if classes and model_class is None:
        raise UserError(f"--model={name}: transformers has no class {classes[0]}, and code of models is not run")
    return transformers.AutoModel.from_config(config) if model_class is None else model_class(config)


def _from_diffusers(name: str, config: dict[str, Any]) -> nn.Module:
    model_class = _diffusers_class(str(config["_class_name"]))
    if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
        raise UserError(
            f"--model={name}: {config['_class_name']} is not a model; name the folder of one, such as unet/"
        )
    return model_class.from_config(config)  # type: ignore[attr-defined]


def _diffusers_class(name: str) -> Any:
    try:
        diffusers = importlib.import_module("diffusers")
    except ImportError:
        raise UserError("this model needs the package diffusers; run `pip install diffusers`") from None
    if not hasattr(diffusers, name):
        raise UserError(f"diffusers has no class {name}, and code of models is not run")
    return getattr(diffusers, name)


def _kind(model: nn.Module) -> Kind:
    config = getattr(model, "config", None)
    main_input = getattr(model, "main_input_name", "")
    if type(model).__name__ == "UNet2DConditionModel":
        return "unet"
    if type(model).__name__ == "LlavaForConditionalGeneration":
        return "llava"
    if main_input == "pixel_values" and hasattr(config, "image_size"):
        return "pictures"
    several = getattr(config, "is_encoder_decoder", False) or hasattr(config, "vision_config")
    return "text" if main_input == "input_ids" and not several else "other"


def _preset(linear: Sequence[str]) -> tuple[str, ...]:
    """The first set of the papers' layers all of which a model has."""
    for targets in _PRESETS:
        if all(any(name == target or name.endswith("." + target) for name in linear) for target in targets):
            return targets
    return ()
