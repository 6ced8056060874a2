"""A LLaVA model out of its files: whole, or a CLIP tower, a language model and a projector put together.

Names are transformers': `model.language_model.*`, `model.vision_tower.*`, `model.multi_modal_projector.*`, `lm_head`.
Every tensor goes from its file to its place, in its final dtype and on its device, one after the other.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BitsAndBytesConfig,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging

from common.errors import UserError
from common.words import first_line, listed
from llava.assemble_parts import (
    LANGUAGE_MODEL,
    VISION_TOWER,
    as_config,
    read_language_model,
    read_preprocessor,
    read_vision_tower,
    require_clip,
    require_unquantized,
)
from llava.config import Attention, ModelConfig, Quantization
from llava.convert import INTERNLM2
from llava.model_files import LazyTensor, Weights, find_folder, fingerprint, read_config, read_weights
from llava.model_projector import PROJECTOR, new_projector, read_projector
from llava.model_tokens import Vocabulary, make_vocabulary, open_tokenizer

# bitsandbytes looks for whole names: without `model.` these would be quantised all the same
UNQUANTIZED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
# buffers that old checkpoints carry along and every model computes for itself
_COMPUTED = re.compile(r".*(rotary_emb\.inv_freq|position_ids|\.masked_bias|attn\.bias)")
# the names of transformers before its version 5, which it still writes
_OLD_NAMES = {
    r"language_model\.lm_head\.": "lm_head.",
    r"language_model\.model\.": LANGUAGE_MODEL,
    r"(?:model\.)?vision_tower\.(?:vision_model\.)?": VISION_TOWER,
    r"(?:model\.)?multi_modal_projector\.": PROJECTOR,
}


@dataclass(frozen=True)
class Parts:
    """A LLaVA model that was found but not read yet.

    Args:
        config: of the model as it will be: the tower's unused layers dropped, the vocabulary with the image token.
        weights: name in the model -> tensor in its file; the projector's apart.
        projector: likewise; None: a new one is to be made.
        vocabulary: the tokenizer and what it needs.
        preprocess: the tower's `preprocessor_config.json`, as far as it has one.
        fingerprint: of `weights`, before the vocabulary was widened.
        projector_fingerprint: of `projector`; empty for a new one.
    """

    config: LlavaConfig
    weights: Weights
    projector: Weights | None
    vocabulary: Vocabulary
    preprocess: Mapping[str, Any]
    fingerprint: str
    projector_fingerprint: str


def find_parts(config: ModelConfig, *, projector: Path | None = None) -> Parts:
    """Find the files of a recipe's model and read their headers; the Hub is asked only for what its cache lacks.

    Args:
        config: the model section.
        projector: a file that replaces the projector of the recipe.

    Raises:
        UserError: something is not there, damaged, of a kind that does not fit, or of another width.
    """
    if config.name is not None:
        llava, weights, folder, preprocess = _whole(config)
        own = {name: weights.pop(name) for name in list(weights) if name.startswith(PROJECTOR)}
        tokenizer = open_tokenizer("model.name", folder)
    else:
        llava, weights, folder, preprocess, tokenizer = _from_parts(config)
        own = {}
    source = str(projector) if projector is not None else config.projector
    if source is not None:
        own = read_projector("model.projector", source, *_widths(llava))
    mark, projector_mark = fingerprint(weights), fingerprint(own) if own else ""
    vocabulary = make_vocabulary(tokenizer, llava.text_config.vocab_size)
    weights = _with_rows(weights, vocabulary.rows)
    llava.text_config.vocab_size = vocabulary.rows
    llava.text_config.pad_token_id = vocabulary.tokenizer.pad_token_id
    llava.image_token_index = vocabulary.image_token_id
    return Parts(llava, weights, own or None, vocabulary, preprocess, mark, projector_mark)


def build(
    parts: Parts, *, quantization: Quantization, attention: Attention, dtype: torch.dtype, device: torch.device | str
) -> LlavaForConditionalGeneration:
    """Read the weights into a model on `device`; everything is frozen.

    Args:
        parts: from `find_parts`.
        quantization: `nf4` puts the language model, without its output head, into 4 bit.
        attention: of the language model; the tower's is SDPA.
        dtype: of all weights but the projector's, which are float32.
        device: where the model goes, tensor by tensor.

    Raises:
        UserError: tensors are missing, unexpected or of another shape; an attention that is not installed.
    """
    projector = parts.projector or new_projector(*_widths(parts.config))
    quantization_config = None
    if quantization == "nf4":
        quantization_config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=UNQUANTIZED,
        )
    try:
        with _quietly():
            model, info = LlavaForConditionalGeneration.from_pretrained(
                None,
                config=parts.config,
                state_dict={**parts.weights, **projector},
                dtype=dtype,
                device_map={"": device},
                attn_implementation={"text_config": attention, "vision_config": "sdpa"},
                quantization_config=quantization_config,
                ignore_mismatched_sizes=True,  # reported below, all at once
                output_loading_info=True,
            )
    except (ImportError, ValueError) as error:  # flash attention or bitsandbytes is not there, or not for this model
        reason = first_line(error)
        raise UserError(f"model.attention={attention}, model.quantization={quantization}: {reason}") from error
    _require_exact(info)
    layers = model.model.multi_modal_projector.to(torch.float32)
    with torch.no_grad():
        for name, parameter in layers.named_parameters():
            parameter.copy_(projector[PROJECTOR + name][...])  # as in its file, not by way of bfloat16
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=parts.vocabulary.tokenizer.bos_token_id,
        eos_token_id=parts.vocabulary.tokenizer.eos_token_id,
        pad_token_id=parts.vocabulary.tokenizer.pad_token_id,
        suppress_tokens=[parts.vocabulary.image_token_id],  # a picture is no answer
    )
    return model.requires_grad_(False).eval()


def _whole(config: ModelConfig) -> tuple[LlavaConfig, Weights, Path, dict[str, Any]]:
    assert config.name is not None
    folder = find_folder("model.name", config.name)
    content = read_config("model.name", folder)
    kind = content.get("model_type")
    if kind != "llava" or "text_config" not in content:
        own_form = "in LLaVA's own form" if "mm_projector_type" in content else f"of type {kind}"
        raise UserError(
            f"model.name={config.name} is a model {own_form}; a whole model is one of transformers' LLaVA (model_type "
            "llava with a text_config). A language model is given as model.language_model, with model.vision_tower and "
            "model.projector"
        )
    require_unquantized("model.name", folder, content)
    llava = as_config(content, folder)
    require_clip("model.name", llava.vision_config)
    layer = llava.vision_feature_layer
    if not isinstance(layer, int):
        raise UserError(f"model.name={config.name} joins the features of layers {layer}; only one layer is supported")
    layer = layer if layer < 0 else layer - llava.vision_config.num_hidden_layers - 1
    if config.feature_layer not in (layer, ModelConfig().feature_layer):
        raise UserError(
            f"model.feature_layer={config.feature_layer}, but model.name={config.name} was trained on layer {layer}, "
            "which is used; leave model.feature_layer out"
        )
    weights = {}
    for name, tensor in read_weights("model.name", folder).items():
        for old, new in _OLD_NAMES.items():
            changed, count = re.subn(f"^{old}", new, name)
            if count:
                name = changed
                break
        else:
            name = re.sub(r"^language_model\.", LANGUAGE_MODEL, name)
        weights[name] = tensor
    return llava, _keep_layers(llava, weights, layer), folder, read_preprocessor(folder)


def _from_parts(config: ModelConfig) -> tuple[LlavaConfig, Weights, Path, dict[str, Any], Any]:
    assert config.language_model is not None
    assert config.vision_tower is not None
    folder = find_folder("model.language_model", config.language_model)
    text, text_weights = read_language_model(folder)
    is_internlm2 = read_config("model.language_model", folder).get("model_type") == INTERNLM2
    tokenizer = open_tokenizer("model.language_model", folder, plain=is_internlm2)
    tower_folder = find_folder("model.vision_tower", config.vision_tower)
    vision, vision_weights = read_vision_tower(tower_folder)
    llava = LlavaConfig(
        vision_config=vision,
        text_config=text,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        tie_word_embeddings=text.tie_word_embeddings,
    )
    weights = _keep_layers(llava, {**text_weights, **vision_weights}, config.feature_layer)
    return llava, weights, folder, read_preprocessor(tower_folder), tokenizer


def _keep_layers(llava: LlavaConfig, weights: Weights, feature_layer: int) -> Weights:
    """Drop what is behind the feature layer, in the configuration too, and known buffers.

    The last layer would get no gradient, and DDP stops on a parameter without one.
    """
    layers = llava.vision_config.num_hidden_layers
    kept = layers + 1 + feature_layer
    if kept < 1:
        raise UserError(
            f"model.feature_layer={feature_layer} lies before the first of the tower's {layers} layers; -1 is the last"
        )
    llava.vision_config = copy.deepcopy(llava.vision_config)
    llava.vision_config.num_hidden_layers = kept
    llava.vision_feature_layer = -1
    layer = re.compile(re.escape(VISION_TOWER) + r"encoder\.layers\.(\d+)\.")

    def used(name: str) -> bool:
        match = layer.match(name)
        return (match is None or int(match[1]) < kept) and not _COMPUTED.fullmatch(name)

    return {name: tensor for name, tensor in weights.items() if used(name)}


def _with_rows(weights: Weights, rows: int) -> Weights:
    """The vocabulary's matrices with as many rows as it has tokens.

    New rows are the mean of the others: the new tokens' logits are then never the greatest.
    """

    def widened(tensor: LazyTensor) -> LazyTensor:
        def take(whole: Tensor) -> Tensor:
            mean = whole.float().mean(0, keepdim=True).to(whole.dtype)
            return torch.cat([whole, mean.expand(rows - len(whole), -1)])

        return tensor.split((rows, *tensor.shape[1:]), take)

    names = (f"{LANGUAGE_MODEL}embed_tokens.weight", "lm_head.weight")
    wider = {name: widened(weights[name]) for name in names if name in weights and weights[name].shape[0] < rows}
    return {**weights, **wider}


def _widths(llava: LlavaConfig) -> tuple[int, int]:
    return llava.vision_config.hidden_size, llava.text_config.hidden_size


def _require_exact(info: Mapping[str, Any]) -> None:
    lines = []
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in info.get(key) or ())
        if names:
            lines.append(f"{len(names)} {key.replace('_', ' ')}: {listed(names, 6)}")
    if lines:
        raise UserError("the weights do not fit the model that config.json describes: " + "; ".join(lines))


@contextmanager
def _quietly() -> Any:
    """Without transformers' own report of keys that do not fit, which `_require_exact` makes an error of.

    And with one progress bar, however many processes there are.
    """
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    if os.environ.get("RANK", "0") != "0":
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
