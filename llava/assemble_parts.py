"""The parts of a LLaVA model: a language model and a CLIP tower, read from their own folders."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, CLIPVisionConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from common.errors import UserError
from common.words import first_line
from llava.convert import INTERNLM2, internlm2_config, internlm2_weights
from llava.model_files import Weights, read_config, read_json_object, read_weights

LANGUAGE_MODEL, VISION_TOWER = "model.language_model.", "model.vision_tower."
# what lies in a CLIP checkpoint beside its vision tower
_TEXT_SIDE = ("text_model.", "text_projection", "visual_projection", "logit_scale", "logit_bias")
# what Gemma, Cohere, Granite and Falcon-H1 do to their logits behind the output head
_HEAD_SETTINGS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


def read_language_model(folder: Path) -> tuple[PreTrainedConfig, Weights]:
    """The configuration of a language model, and its tensors by their names in a LLaVA model.

    Raises:
        UserError: it is none that transformers' LLaVA can hold, or is quantised already.
    """
    key = "model.language_model"
    content = read_config(key, folder)
    kind = content.get("model_type")
    weights = read_weights(key, folder)
    if kind == INTERNLM2:
        config = internlm2_config(content)
        weights, prefix = internlm2_weights(weights, config), "model"
    else:
        config = as_config(content, folder)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise UserError(
                f"{key}={folder} is a model of type {kind}, which is no causal language model of transformers; give "
                "one that is (llama, mistral, qwen2, ... ; InternLM2 is converted)"
            )
        prefix = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].base_model_prefix
    require_unquantized(key, folder, content)
    named = {}
    for name, tensor in weights.items():
        named[LANGUAGE_MODEL + name.removeprefix(f"{prefix}.") if name.startswith(f"{prefix}.") else name] = tensor
    _require_like_llama(key, folder, config, named)
    return config, named


def _require_like_llama(key: str, folder: Path, config: PreTrainedConfig, weights: Weights) -> None:
    """LLaVA's class finds the embedding by its name, and its output head is a matrix and nothing else."""
    if f"{LANGUAGE_MODEL}embed_tokens.weight" not in weights or "lm_head.bias" in weights:
        raise UserError(
            f"{key}={folder} is a model of type {config.model_type}, whose embedding or output head transformers' "
            "LLaVA cannot hold; give one that is built as Llama is (llama, mistral, mixtral, qwen2, qwen3, phi3, or "
            "InternLM2)"
        )
    changed = [name for name in _HEAD_SETTINGS if getattr(config, name, None) not in (None, 1, 1.0)]
    if changed:
        raise UserError(
            f"{key}={folder} is a model of type {config.model_type} whose logits are changed by {', '.join(changed)}, "
            "which transformers' LLaVA would leave out; give another language model"
        )


def read_vision_tower(folder: Path) -> tuple[CLIPVisionConfig, Weights]:
    """The configuration of a CLIP vision tower, and its tensors by their names in a LLaVA model.

    Raises:
        UserError: it is no CLIP model.
    """
    key = "model.vision_tower"
    config = as_config(read_config(key, folder), folder)
    vision = config.vision_config if config.model_type == "clip" else config
    require_clip(key, vision)
    weights = {
        VISION_TOWER + name.removeprefix("vision_model."): tensor
        for name, tensor in read_weights(key, folder).items()
        if not name.startswith(_TEXT_SIDE)
    }
    return vision, weights


def as_config(content: dict[str, Any], folder: Path) -> Any:
    """transformers' configuration object for the content of a `config.json`.

    Raises:
        UserError: transformers knows no such model, or its values are impossible.
    """
    try:
        return CONFIG_MAPPING[content["model_type"]].from_dict(copy.deepcopy(content))
    except Exception as error:  # one class for each way in which a configuration is wrong
        reason = first_line(error)
        raise UserError(
            f"{folder / 'config.json'} is not a configuration that transformers knows ({reason}); models that bring "
            "their own code are not run here"
        ) from error


def require_unquantized(key: str, folder: Path, content: Mapping[str, Any]) -> None:
    """Raise `UserError` for a model that is in 4 or 8 bit already."""
    if content.get("quantization_config") is not None:
        raise UserError(f"{key}={folder} is quantised already; give the original, and set model.quantization=nf4")


def require_clip(key: str, config: PreTrainedConfig) -> None:
    """Raise `UserError` for another vision tower than CLIP's."""
    if not isinstance(config, CLIPVisionConfig):
        raise UserError(f"{key}: the vision tower is of type {config.model_type}; a CLIP vision model is needed")


def read_preprocessor(folder: Path) -> dict[str, Any]:
    """How a model's pictures are prepared, as far as its folder says."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            content = read_json_object(folder / name)
            return content.get("image_processor", content)
    return {}
