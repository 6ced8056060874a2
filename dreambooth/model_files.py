"""Where an SDXL model's files lie and how they are read: a Hub id, a folder, or a single file; safetensors only."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from diffusers.utils import logging as library_logging
from huggingface_hub import constants, snapshot_download
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging as text_logging

from common.errors import UserError
from common.weights import damaged
from common.words import counted
from dreambooth.config import ModelConfig

BUILTIN = "builtin:"
INDEX = "model_index.json"
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
DEFAULT_CONFIG = "stabilityai/stable-diffusion-xl-base-1.0"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# of a VAE's attention in files of older versions
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
_CONFIG_FILES = ["model_index.json", "*/*.json", "*/*.txt"]


def open_pipeline(config: ModelConfig, dtype: torch.dtype) -> Any:
    """The pipeline that a recipe's model section names, on the CPU.

    Args:
        config: the section.
        dtype: of UNet and text encoders; the VAE is in float32, since it loses pictures in half precision.

    Raises:
        UserError: it is not there, damaged, or no SDXL.
    """
    path = Path(config.name).expanduser()
    single = path.suffix == ".safetensors"
    if single and not path.is_file():
        raise UserError(f"model.name={config.name}: there is no such file")
    folder = None if single else find_pipeline("model.name", config.name, config.variant)
    vae = None if config.vae is None else _open_vae(config.vae)
    with _quiet(), _explained(config.name):
        if folder is None:
            return _open_single_file(path, config.config or DEFAULT_CONFIG, vae, dtype)
        beside = {} if vae is None else {"vae": vae}
        pipeline = StableDiffusionXLPipeline.from_pretrained(
            folder,
            # the VAE in float32, the rest in the recipe's precision
            torch_dtype={"vae": torch.float32, "default": dtype},
            variant=config.variant,
            use_safetensors=True,
            local_files_only=True,
            add_watermarker=False,
            **beside,
        )
        for part in ("unet", "text_encoder", "text_encoder_2", *(["vae"] if vae is None else [])):
            _require_every_tensor(folder / part, config.variant, getattr(pipeline, part))
        return pipeline


def _require_every_tensor(folder: Path, variant: str | None, module: nn.Module) -> None:
    """Raise `UserError` if the files lack a tensor, which the libraries would make up behind a warning."""

    def known_as(name: str) -> str:
        for old, new in _OLD_NAMES.items():
            name = name.replace(old, new)
        return name.removeprefix("text_model.")

    files = list(folder.glob("*.safetensors"))
    # NAME.fp16.safetensors, or a part of it: NAME.fp16-00001-of-00002.safetensors
    wanted = [file for file in files if f".{variant}" in file.name] if variant else []
    saved: set[str] = set()
    for file in wanted or [file for file in files if file.name.count(".") == 1]:
        with safe_open(file, framework="pt") as opened:
            saved |= {known_as(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    missing = sorted({known_as(name) for name in module.state_dict()} - saved)
    missing = [name for name in missing if not name.endswith("position_ids")]
    if missing:
        raise UserError(
            f"{folder} lacks {counted(len(missing), 'tensor')}, such as {', '.join(missing[:3])}; fetch it again"
        )


def find_pipeline(key: str, name: str, variant: str | None = None, *, weights: bool = True) -> Path:
    """The folder of a pipeline in diffusers' form: a local one, or a Hub repository's in the cache, fetched if need be.

    Args:
        key: the recipe's key, for messages.
        name: path, Hub id, or `builtin:` and the name of a model that ships.
        variant: of the weights' files.
        weights: whether more than configuration and tokenizers is wanted.

    Raises:
        UserError: there is no such folder, or the Hub has no such model or cannot be reached.
    """
    if name.startswith(BUILTIN):
        from dreambooth.demo.builtin import model_path

        return model_path(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return _require_pipeline(key, path)
    if path.exists():
        raise UserError(f"{key}={name} is neither a folder nor a .safetensors file; give an SDXL model")

    def fetched(local: bool) -> Path:
        if not weights:
            return Path(snapshot_download(name, allow_patterns=_CONFIG_FILES, local_files_only=local))
        return Path(
            StableDiffusionXLPipeline.download(
                name, variant=variant, use_safetensors=True, local_files_only=local, cache_dir=constants.HF_HUB_CACHE
            )
        )

    ending = f".{variant}.safetensors" if variant else ".safetensors"
    include = [*_CONFIG_FILES, *([f"*/model{ending}", f"*/diffusion_pytorch_model{ending}"] if weights else [])]
    return _require_pipeline(key, _from_hub(key, name, fetched, include))


def _require_pipeline(key: str, folder: Path) -> Path:
    if not (folder / INDEX).is_file():
        inside = ", ".join(sorted(each.name for each in folder.iterdir())[:6]) or "nothing"
        raise UserError(f"{key}={folder} is not the folder of a pipeline: it has no {INDEX} (it holds {inside})")
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise UserError(
            f"{key}={folder} is not a whole SDXL pipeline: {', '.join(missing)} missing; fetch it again, or give "
            "SDXL's base model, which has all of its parts"
        )
    return folder


def _from_hub(key: str, name: str, fetched: Callable[[bool], Path], include: Sequence[str] = ()) -> Path:
    """What the Hub's cache has under a name, or else the Hub."""
    if not _HUB_ID.fullmatch(name):
        raise UserError(f"{key}={name}: there is no such folder or file (and it is no Hub id, which would be ORG/NAME)")
    with _quiet():
        with contextlib.suppress(Exception):  # whatever the Hub says below is the better message
            # first the cache alone: without a network the library would ask it only after long retries
            return fetched(True)
        try:
            return fetched(False)
        except Exception as error:
            reason = type(error).__name__
    fetch = " ".join([f"hf download {name}", *([f"--include {' '.join(map(repr, include))}"] if include else [])])
    raise UserError(
        f"{key}={name} is neither here nor whole in the cache {constants.HF_HUB_CACHE}, nor to be had from the Hub now "
        f"({reason}); where there is a network run `{fetch}` and copy the cache here, or set {key} to the path of a "
        "folder"
    )


def _open_vae(name: str) -> AutoencoderKL:
    path = Path(name).expanduser()
    if path.suffix == ".safetensors" and path.is_file():
        raise UserError(f"model.vae={name} is a single file; give the folder of a VAE in diffusers' form, or a Hub id")
    if not path.is_dir():
        files = ["config.json", "diffusion_pytorch_model.safetensors"]

        def fetched(local: bool) -> Path:
            folder = Path(snapshot_download(name, allow_patterns=files, local_files_only=local))
            if not all((folder / file).is_file() for file in files):
                raise FileNotFoundError(", ".join(files))
            return folder

        path = _from_hub("model.vae", name, fetched)
    if not (path / "config.json").is_file():
        raise UserError(f"model.vae={name} is not the folder of a VAE: it has no config.json")
    with _quiet(), _explained(name, "model.vae"):
        return AutoencoderKL.from_pretrained(path, torch_dtype=torch.float32, use_safetensors=True)


def _open_single_file(path: Path, config: str, vae: AutoencoderKL | None, dtype: torch.dtype) -> Any:
    try:
        with safe_open(path, framework="pt") as opened:
            names = set(opened.keys())
    except SafetensorError as error:
        raise damaged(path, error) from error
    if not any(name.startswith("model.diffusion_model.") for name in names) or not any(
        name.startswith("conditioner.embedders.1.") for name in names
    ):
        raise UserError(
            f"model.name={path} holds no whole SDXL model: a UNet (model.diffusion_model.*) and two text encoders "
            "(conditioner.embedders.*) are expected; is it a LoRA, or another kind of model?"
        )
    folder = find_pipeline("model.config", config, weights=False)
    same: dict[str, Any] = {"config": str(folder), "local_files_only": True}
    if vae is None:
        vae = AutoencoderKL.from_single_file(str(path), subfolder="vae", torch_dtype=torch.float32, **same)
    pipeline = StableDiffusionXLPipeline.from_single_file(
        str(path), vae=vae, torch_dtype=dtype, add_watermarker=False, **same
    )
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        lacking = [name for name, tensor in getattr(pipeline, part).state_dict().items() if tensor.is_meta]
        if lacking:
            raise UserError(
                f"model.name={path} lacks {counted(len(lacking), 'tensor')} of the {part}, such as {lacking[0]}; is "
                f"the file whole, and is model.config={config} of the same kind of model?"
            )
    return pipeline


@contextlib.contextmanager
def _explained(name: str, key: str = "model.name") -> Iterator[None]:
    """Loading errors of the libraries as a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{key}={name} cannot be opened as an SDXL model: {reason or type(error).__name__}; fetch it again, and "
            "give it in safetensors (model.variant=fp16 where there are only such files)"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The libraries' progress bars and remarks off; their errors are put in our words."""
    bars = library_logging.is_progress_bar_enabled(), text_logging.is_progress_bar_enabled()
    verbosity = library_logging.get_verbosity()
    library_logging.disable_progress_bar()
    text_logging.disable_progress_bar()
    library_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch_dtype")  # older versions know no other name for it
            yield
    finally:
        library_logging.set_verbosity(verbosity)
        if bars[0]:
            library_logging.enable_progress_bar()
        if bars[1]:
            text_logging.enable_progress_bar()
