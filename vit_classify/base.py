"""Find and build the CLIP model that a run starts from, with the checks between its config and its weights.

A base is an open_clip architecture with a tag (weights from the Hub cache) or a weights file, a Hub
repository, a folder, or what ships with the suite; all of them end as one `Base` and are read by the same
code.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import nn

from common.errors import UserError
from common.words import did_you_mean
from vit_classify.checkpoint import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    activation_in,
    activation_of,
    load_strictly,
    openai_preprocess,
    read_tensors,
)
from vit_classify.config import ModelConfig
from vit_classify.demo import PREFIX, builtin_model_dir

_PICKLED_FILE = "open_clip_pytorch_model.bin"
# what a CLIP checkpoint holds beside its vision tower
_TEXT_SIDE = (
    "text.",
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "text_projection",
    "logit_scale",
    "logit_bias",
)


@dataclass(frozen=True)
class Base:
    """A CLIP model that was found but not read yet.

    Args:
        name: as the recipe says it.
        open_clip_name: by which open_clip finds the tokenizer.
        model_cfg: open_clip's description of both towers.
        preprocess: open_clip's `mean`, `std`, `resize_mode` and `interpolation`.
        weights: the file.
    """

    name: str
    open_clip_name: str
    model_cfg: dict[str, Any]
    preprocess: dict[str, Any]
    weights: Path


def find_base(config: ModelConfig) -> Base:
    """Find config and weights of the model of a recipe; the Hub is asked only for what its cache lacks.

    Raises:
        UserError: nothing there; a name, tag or config that is not known; weights trained with another
            activation than the architecture has.
    """
    if config.name.startswith(PREFIX):
        base, told = _in_folder(config.name, builtin_model_dir(config.name))
    elif config.name.startswith("local-dir:"):
        base, told = _in_folder(config.name, Path(config.name.removeprefix("local-dir:")).expanduser())
    elif config.name.startswith("hf-hub:"):
        base, told = _on_the_hub(config.name)
    else:
        base, told = _named(config)
    _check_activation(config, base, told)
    _check_preprocess(base)
    return base


def load_tower(base: Base) -> nn.Module:
    """The vision tower alone (`open_clip.transformer.VisionTransformer`, float32, CPU), strictly loaded.

    Raises:
        UserError: the file is damaged or does not hold exactly the tower's weights.
    """
    # one small throw-away text layer: building the real one costs a second and 60 M random numbers
    small = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
    clip = _build(base, {**base.model_cfg, "text_cfg": small, "custom_text": False})
    tower = clip.get_submodule("visual")
    state = read_tensors(base.weights)
    visual = {key: value for key, value in state.items() if not key.startswith(_TEXT_SIDE)}
    load_strictly(nn.ModuleDict({"visual": tower}), visual, base.weights)
    return tower


def load_clip(base: Base) -> nn.Module:
    """Both towers and the logit scale, float32, CPU, strictly loaded.

    Raises:
        UserError: as `load_tower`.
    """
    model = _build(base, base.model_cfg)
    load_strictly(model, read_tensors(base.weights), base.weights)
    return model


def _in_folder(name: str, folder: Path) -> tuple[Base, str | None]:
    described = _described(name, folder)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file() and (folder / _PICKLED_FILE).is_file():
        weights = folder / _PICKLED_FILE
    if not weights.is_file():
        raise UserError(f"model.name={name}: no weights at {weights}")
    preprocess = {**openai_preprocess(), **described.get("preprocess_cfg", {})}
    base = Base(name, f"local-dir:{folder}", described["model_cfg"], preprocess, weights)
    return base, activation_in(weights)


def _described(name: str, folder: Path) -> dict[str, Any]:
    """What open_clip's config file in a folder says."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"model.name={name}: no {path}; such a folder holds {CONFIG_FILE} and {WEIGHTS_FILE}")
    try:
        described = json.loads(path.read_text())
        model_cfg = described["model_cfg"]
        _ = {**model_cfg["vision_cfg"], **model_cfg["text_cfg"], "embed_dim": model_cfg["embed_dim"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"model.name={name}: {path} is not JSON with a model_cfg of embed_dim, vision_cfg and text_cfg ({error!r})"
        ) from error
    return described


def _on_the_hub(name: str) -> tuple[Base, str | None]:
    repository = name.removeprefix("hf-hub:")
    config_path = _fetch(f"model.name={name}", repository, CONFIG_FILE)
    weights = _fetch(f"model.name={name}", repository, WEIGHTS_FILE, _PICKLED_FILE)
    base, told = _in_folder(name, config_path.parent)
    return dataclasses.replace(base, open_clip_name=name, weights=weights), _of_repository(repository) or told


def _named(config: ModelConfig) -> tuple[Base, str | None]:
    name = config.name.replace("/", "-")
    model_cfg = open_clip.get_model_config(name)
    if model_cfg is None:
        raise UserError(
            f"model.name={config.name} is not an architecture of open_clip; "
            f"{did_you_mean(name, open_clip.list_models())} (or hf-hub:ORG/NAME, local-dir:PATH)"
        )
    weights = config.weights or "openai"
    if os.sep in weights or Path(weights).suffix in (".safetensors", ".bin", ".pt", ".pth"):
        path = Path(weights).expanduser()
        if not path.is_file():
            raise UserError(f"model.weights={weights}: there is no such file")
        return Base(name, name, model_cfg, openai_preprocess(), path), _activation_of_file(path)
    tag = open_clip.get_pretrained_cfg(name, weights)
    if not tag:
        other = _other_name(name)
        if other is not None and open_clip.get_pretrained_cfg(other, weights):
            tag = open_clip.get_pretrained_cfg(other, weights)
            raise _mismatch(f"model.weights={weights}", name, activation_of(tag))
        tags = open_clip.list_pretrained_tags_by_model(name)
        known = did_you_mean(weights, tags) if tags else "open_clip knows no weights for it"
        raise UserError(f"model.weights={weights} is no open_clip tag of {name}, and no file; {known}")
    if activation_of(tag) != activation_of(model_cfg):  # before anything is fetched
        raise _mismatch(f"model.weights={weights}", name, activation_of(tag))
    path = _fetch_tag(f"model.weights={weights} of {name}", tag)
    return Base(name, name, model_cfg, {**openai_preprocess(), **tag}, path), activation_of(tag)


def _fetch_tag(what: str, tag: dict[str, Any]) -> Path:
    repository, filename = os.path.split(tag.get("hf_hub", ""))
    if repository:
        safe = Path(filename).with_suffix(".safetensors").name if filename else WEIGHTS_FILE
        return _fetch(what, repository, safe, filename or _PICKLED_FILE)
    try:
        return Path(open_clip.download_pretrained(tag))
    except Exception as error:
        raise UserError(f"{what}: {tag['url']} cannot be fetched ({error}); put it into ~/.cache/clip") from error


def _fetch(what: str, repository: str, *filenames: str) -> Path:
    """The first of some files that a Hub repository has, from the cache or else from the network."""
    cache = constants.HF_HUB_CACHE
    for filename in filenames:
        # first the cache alone: without a network the library would ask it only after half a minute of retries
        found = try_to_load_from_cache(repository, filename, cache_dir=cache)
        if isinstance(found, str):
            return Path(found)
    for filename in filenames:
        try:
            return Path(hf_hub_download(repository, filename, cache_dir=cache))
        except Exception as error:
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                continue  # the Hub was reached and has no such file; it has the next form, perhaps
            reason = type(error).__name__
            break
    else:
        reason = "the repository has no such file"
    raise UserError(
        f"{what}: {filenames[0]} of {repository} is neither in the cache {cache} nor to be had from the Hub now "
        f"({reason}); where there is a network run `hf download {repository} {filenames[0]}` and copy the cache here, "
        "or set model.name=local-dir:PATH"
    )


def _build(base: Base, model_cfg: Mapping[str, Any]) -> nn.Module:
    cfg = copy.deepcopy(dict(model_cfg))
    vision = cfg.get("vision_cfg", {})
    plain = isinstance(vision.get("layers", 12), int) and not vision.get("attentional_pool")
    if not plain or "timm_model_name" in vision or "multimodal_cfg" in cfg:
        raise UserError(
            f"model.name={base.name} has no plain vision transformer (a ResNet, a timm model or CoCa), which is what "
            "is adapted here; choose for example ViT-B-32-quickgelu, ViT-B-16-quickgelu or ViT-L-14-quickgelu"
        )
    custom = cfg.pop("custom_text", False) or "hf_model_name" in cfg["text_cfg"]
    try:
        with torch.random.fork_rng(devices=[]):  # the values drawn here are overwritten
            return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**cfg)
    except (TypeError, ValueError, KeyError, OSError) as error:  # OSError: a text tower of the Hub that is not there
        raise UserError(f"model.name={base.name}: open_clip cannot build this model_cfg: {error}") from error


def _check_preprocess(base: Base) -> None:
    mode, interpolation = base.preprocess["resize_mode"], base.preprocess["interpolation"]
    if mode != "shortest" or interpolation not in ("bicubic", "random"):
        raise UserError(
            f"model.name={base.name} was trained on pictures resized by {mode!r}, {interpolation!r}; the transforms "
            "here are bicubic to the shorter side, and its accuracy would be wrong; choose another model"
        )


def _check_activation(config: ModelConfig, base: Base, told: str | None) -> None:
    """The activation is in no weight: where it is wrong all shapes fit and the output is off by a little."""
    key = f"model.weights={base.weights}"
    folder = config.name.startswith((PREFIX, "local-dir:", "hf-hub:"))
    if told and config.activation and told != config.activation:
        raise UserError(f"model.activation={config.activation}, but {key} was trained with {told}; leave it out")
    told = told or config.activation
    if told is None and not folder:
        raise UserError(
            f"{key} does not say whether it was trained with QuickGELU, and a mismatch would be silent; "
            "set model.activation=quick_gelu (weights of OpenAI, laion400m, MetaCLIP, DFN) or "
            "model.activation=gelu (laion2b, DataComp)"
        )
    if told is not None and told != activation_of(base.model_cfg):
        raise _mismatch(key, base.name, told)


def _mismatch(key: str, name: str, trained_with: str) -> UserError:
    needs = "QuickGELU" if trained_with == "quick_gelu" else "plain GELU"
    other = _other_name(name)
    remedy = f"use model.name={other}"
    if other is None:
        remedy = f"set quick_gelu={str(trained_with == 'quick_gelu').lower()} in the model_cfg of {CONFIG_FILE}"
    return UserError(f"{key} was trained with {needs}, model.name={name} has the other activation; {remedy}")


def _other_name(name: str) -> str | None:
    """The architecture that differs from `name` only in its activation, if open_clip has it."""
    suffix = "-quickgelu"
    other = name.removesuffix(suffix) if name.endswith(suffix) else name + suffix
    return other if other in open_clip.list_models() else None


def _activation_of_file(path: Path) -> str | None:
    """What is known of a weights file: its own metadata, its place in a Hub cache, the config beside it."""
    for part in path.absolute().parts:
        if part.startswith("models--"):
            known = _of_repository(part.removeprefix("models--").replace("--", "/"))
            if known is not None:
                return known
    told = activation_in(path)
    if told is None and (path.parent / CONFIG_FILE).is_file():
        return activation_of(_described(str(path.parent), path.parent)["model_cfg"])
    return told


def _of_repository(repository: str) -> str | None:
    """The activation of weights that open_clip itself lists under this Hub repository."""
    for name, tag in open_clip.list_pretrained():
        if "roberta" in name:
            continue  # open_clip's tags and configs disagree about these
        described = open_clip.get_pretrained_cfg(name, tag)
        if described.get("hf_hub", "").rpartition("/")[0] == repository:
            return activation_of(described)
    return None
