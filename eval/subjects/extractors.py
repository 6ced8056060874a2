"""Feature extractors of DreamBooth's protocol: DINO ViT-S/16 and CLIP ViT-B/32, through transformers.

How a picture becomes pixels is part of the protocol and fixed here, as the models' authors evaluate them: DINO scales
the shorter side to 256 and takes the middle 224, with ImageNet's statistics; CLIP scales it to 224 and takes the middle
224, with its own. The preprocessing file of `facebook/dino-vits16` on the Hub named other statistics (0.5) when it
was published, so no such file is read.

N: pictures or texts. D: width of the features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import xxhash
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, CLIPModel
from transformers.utils import logging as library_logging

from common.errors import UserError

Features = Callable[[Sequence[Image.Image]], Tensor]  # pictures -> (N, D)
TextFeatures = Callable[[Sequence[str]], Tensor]  # texts -> (N, D)

DINO, CLIP = "facebook/dino-vits16", "openai/clip-vit-base-patch32"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_SHRINK = 256 / 224  # DINO's margin around the crop


@dataclass(frozen=True)
class Extractor:
    """Something that turns pictures into features.

    Args:
        features: pictures (RGB) -> (N, D).
        fingerprint: of all that the features depend on, for the cache; empty: they are not cached.
    """

    features: Features
    fingerprint: str = ""


@dataclass(frozen=True)
class Extractors:
    """What the three measures are taken with; a measure whose extractor is None is left out.

    Args:
        dino: for DINO.
        clip: for CLIP-I and, with `texts`, CLIP-T.
        texts: the text side of `clip`.
        too_long: whether a text is longer than `texts` can take in.
        labels: metric -> what tables call it, where the features are others than the protocol's; empty: they are those.
        about: what then must be said beside every number.
    """

    dino: Extractor | None = None
    clip: Extractor | None = None
    texts: TextFeatures | None = None
    too_long: Callable[[str], bool] = lambda text: False
    labels: Mapping[str, str] = field(default_factory=dict)
    about: str = ""


def to_pixels(
    images: Sequence[Image.Image], resize: int, crop: int, statistics: tuple[Sequence[float], Sequence[float]]
) -> Tensor:
    """Pictures as a model's input: the shorter side scaled (bicubic), the middle taken, the colours normalised.

    Args:
        images: RGB.
        resize: the shorter side in pixels.
        crop: side of the square, at most `resize`.
        statistics: mean and standard deviation of red, green and blue in [0, 1].

    Returns:
        (N, 3, crop, crop) float32.
    """
    mean, deviation = (np.asarray(values, np.float32) for values in statistics)
    rows = []
    for image in images:
        width, height = image.size
        scale = resize / min(width, height)
        size = (max(resize, round(width * scale)), max(resize, round(height * scale)))
        left, top = (size[0] - crop) // 2, (size[1] - crop) // 2
        square = image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + crop, top + crop))
        rows.append((np.asarray(square, np.float32) / 255 - mean) / deviation)
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()


def load_dino(name: str = DINO, device: torch.device | str = "cpu") -> Extractor:
    """DINO's features: the class token behind the last norm.

    Args:
        name: Hub id or folder of a vision transformer in transformers' form; pickles are read as plain tensors only.
        device: where it runs, in float32.

    Raises:
        UserError: it is not there, incomplete, or no vision transformer.
    """
    model, unset = _load(AutoModel, name, "--dino")
    side = getattr(model.config, "image_size", None)
    if not isinstance(side, int) or not hasattr(model.config, "patch_size"):
        raise UserError(f"--dino={name} is a {type(model).__name__}, not a vision transformer such as {DINO}")
    fingerprint = _fingerprint(model, unset, f"dino {side}")
    model.to(device)

    @torch.inference_mode()
    def features(images: Sequence[Image.Image]) -> Tensor:
        pixels = to_pixels(images, round(side * _SHRINK), side, IMAGENET)
        return model(pixel_values=pixels.to(device)).last_hidden_state[:, 0].float().cpu()

    return Extractor(features, fingerprint)


def load_clip(name: str = CLIP, device: torch.device | str = "cpu") -> Extractors:
    """CLIP's projected features of pictures and of texts; a text that is too long for it is cut at its end.

    Args:
        name: Hub id or folder of a CLIP model in transformers' form; pickled weights are read as plain tensors only.
        device: where it runs, in float32.

    Raises:
        UserError: it is not there, incomplete, or no CLIP model.
    """
    model, unset = _load(CLIPModel, name, "--clip")
    tokenizer = _explained(AutoTokenizer, name, "--clip")
    side, most = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings
    fingerprint = _fingerprint(model, unset, f"clip {side}")
    model.to(device)

    @torch.inference_mode()
    def of_images(images: Sequence[Image.Image]) -> Tensor:
        pixels = to_pixels(images, side, side, OPENAI).to(device)
        return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output).float().cpu()

    @torch.inference_mode()
    def of_texts(texts: Sequence[str]) -> Tensor:
        tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt").to(device)
        pooled = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        return model.text_projection(pooled).float().cpu()

    def too_long(text: str) -> bool:
        return len(tokenizer(text)["input_ids"]) > most

    return Extractors(clip=Extractor(of_images, fingerprint), texts=of_texts, too_long=too_long)


def _load(kind: Any, name: str, key: str) -> tuple[Any, set[str]]:
    """A model for inference, and the names of weights that its files lack and that do not matter."""
    model, report = _explained(kind, name, key, weights_only=True, dtype=torch.float32, output_loading_info=True)
    missing = set(report["missing_keys"])
    used = sorted(key for key in missing if not key.startswith("pooler."))  # DINO has none
    if used or report["mismatched_keys"]:
        wrong = used or sorted(map(str, report["mismatched_keys"]))
        raise UserError(
            f"{key}={name} is no whole {kind.__name__}: {len(wrong)} weights are not in it, such as {wrong[0]}"
        )
    return model.eval().requires_grad_(False), missing


def _explained(kind: Any, name: str, key: str, **options: Any) -> Any:
    bars, verbosity = library_logging.is_progress_bar_enabled(), library_logging.get_verbosity()
    library_logging.disable_progress_bar()
    library_logging.set_verbosity_error()  # it reports DINO's missing pooler; what matters is an error below
    try:
        with contextlib.suppress(Exception):  # whatever the Hub says below is the better message
            # first the cache alone: without a network the library would ask the Hub only after long retries
            return kind.from_pretrained(name, trust_remote_code=False, local_files_only=True, **options)
        return kind.from_pretrained(name, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, RuntimeError, UnpicklingError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{key}={name} cannot be loaded: {reason[:300]}. Give a folder with config.json and the weights beside it, "
            f"or a Hub id that is in the cache: hf download {name}"
        ) from error
    finally:
        library_logging.set_verbosity(verbosity)
        if bars:
            library_logging.enable_progress_bar()


def _fingerprint(model: nn.Module, unset: set[str], facts: str) -> str:
    digest = xxhash.xxh3_128(f"{facts} {type(model).__name__}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        if name not in unset:  # their values are random
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()
