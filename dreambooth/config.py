"""The recipe of the `dreambooth` pipeline. Imports no torch, so that a bad recipe fails at once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from common.config import AdapterConfig, OnError, Resume, TrainConfig
from common.config_checks import (
    adapter_problems,
    at_least,
    frozen_base_problems,
    idle_problems,
    part_rank_problems,
    run_problems,
    train_problems,
    value_problems,
)
from common.files import absolute, resolved

PredictionType = Literal["epsilon", "v_prediction"]
Attention = Literal["sdpa", "xformers"]
Crop = Literal["center", "random"]

# The projections of every attention of the UNet, as diffusers names them ([M] 4.3), and of CLIP's text encoders.
TARGET_MODULES = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "out_proj")
PLACEHOLDERS = ("token", "class")


@dataclass(frozen=True)
class ModelConfig:
    """The SDXL model that is adapted.

    Args:
        name: Hub id or folder in diffusers' form, a single `.safetensors` file, or `builtin:drawn-sdxl`.
        variant: of the files of a Hub id or folder, such as `fp16`; none given: the plain ones.
        vae: Hub id or folder of another VAE; none given: the model's own. SDXL's own overflows in float16, for which
            `madebyollin/sdxl-vae-fp16-fix` was made.
        config: Hub id or folder with the configuration and the tokenizers that go with a single file; none given:
            those of SDXL base 1.0.
        prediction_type: what the UNet predicts; none given: what the model's scheduler says.
        attention: `sdpa`: PyTorch's own; `xformers`: that library's, which must be installed.
    """

    name: str = "stabilityai/stable-diffusion-xl-base-1.0"
    variant: str | None = None
    vae: str | None = None
    config: str | None = None
    prediction_type: PredictionType | None = None
    attention: Attention = "sdpa"


@dataclass(frozen=True)
class DataConfig:
    """The pictures of one subject.

    Args:
        path: a folder of pictures; or one with a folder of pictures for each subject (DreamBooth's `dataset`), of
            which `subject` names one; or `builtin:drawn-subject[:NAME]`.
        subject: name of a subject's folder below `path`; none given: `path` itself holds the pictures.
        class_word: what the subject is, such as `dog`; none given: from `prompts_and_classes.txt` beside the folder.
        token: the word that comes to mean the subject; a rare one has least to forget.
        prompt: of every picture without a caption of its own; `{token}` and `{class}` are filled in.
        captions: whether each picture's own caption is used, from `NAME.txt` beside it or `metadata.jsonl` in its
            folder (`file_name`, `text`); `{token}` and `{class}` are filled in.
        resolution: side of the training pictures in pixels; a larger picture is scaled until its shorter side has
            this length, then cropped.
        crop: `center`, or `random`: another place in every variant; SDXL is told which.
        flip: whether a variant may be mirrored, with probability one half.
        variants: how many crops and flips of each picture are drawn and cached, equal ones once; they take turns.
        cache_dir: where latents and embeddings are kept; none given: `$MOSGOAT_CACHE` or `~/.cache/mosgoat`.
        on_error: what an unreadable picture does: `skip` leaves it out, counted and named; `raise` stops.
        num_workers: processes that prepare batches; with everything cached, none is fastest.
    """

    path: str | None = None
    subject: str | None = None
    class_word: str | None = None
    token: str = "ikat"
    prompt: str = "a photo of {token} {class}"
    captions: bool = False
    resolution: int = 1024
    crop: Crop = "center"
    flip: bool = False
    variants: int = 8
    cache_dir: str | None = None
    on_error: OnError = "skip"
    num_workers: int = 0


@dataclass(frozen=True)
class TextEncoderConfig:
    """Adapters on both text encoders, of the recipe's method.

    Args:
        train: whether they get adapters; else their outputs are cached, and they are released.
        r: rank there; none given: `adapter.r`.
        alpha: alpha there; none given: `adapter.alpha`.
        learning_rate: peak learning rate there; none given: `train.learning_rate`.
        target_modules: ends of names of layers; none given: q, k, v and out.
    """

    train: bool = False
    r: int | None = None
    alpha: float | None = None
    learning_rate: float | None = None
    target_modules: list[str] | None = None


@dataclass(frozen=True)
class PriorConfig:
    """Prior preservation: pictures of the class that the model made itself hold it to what it knew.

    Args:
        weight: of their loss beside the subject's (DreamBooth: 1); 0: no prior preservation, and nothing below counts.
        pictures: how many there are to be; missing ones are generated.
        path: folder that they lie in or are written to, or one with a folder named after each class word; none given:
            one in the cache.
        prompt: what they are generated and trained with; `{class}` is filled in.
        steps: of sampling.
        guidance: scale of classifier-free guidance.
        batch_size: pictures generated at once.
    """

    weight: float = 0.0
    pictures: int = 100
    path: str | None = None
    prompt: str = "a photo of {class}"
    steps: int = 50
    guidance: float = 5.0
    batch_size: int = 4


@dataclass(frozen=True)
class LossConfig:
    """The loss of denoising.

    Args:
        min_snr_gamma: clips the weight of timesteps with little noise (Hang et al. 2023, who take 5); none given:
            every timestep weighs the same.
    """

    min_snr_gamma: float | None = None


@dataclass(frozen=True)
class ValidationConfig:
    """Pictures drawn during training (every `train.evaluate_every` steps, and at the end) from the same noise.

    Args:
        prompts: `{token}` and `{class}` are filled in; none given: no pictures.
        pictures: of each prompt, from the seeds `seed`, `seed` + 1, ...
        steps: of sampling.
        guidance: scale of classifier-free guidance.
        seed: of the first picture's noise.
    """

    prompts: list[str] | None = None
    pictures: int = 4
    steps: int = 25
    guidance: float = 5.0
    seed: int = 0


@dataclass(frozen=True)
class DreamboothRecipe:
    """Teach SDXL a subject from a handful of pictures.

    Args:
        model: the SDXL model.
        data: the subject's pictures.
        adapter: what is trained in the UNet.
        text_encoder: what is trained in the text encoders.
        prior: pictures of the class that hold the model to what it knew.
        loss: the loss of denoising.
        train: how it is trained.
        validation: pictures drawn during training.
        output: the run directory to make; none given: `runs/dreambooth-SUBJECT-METHOD-seedSEED`. With several
            subjects the folder that gets a run directory for each.
        resume: `auto`: go on from the newest whole checkpoint in `output` if there is one; `never`: refuse an
            `output` that holds a run; `must`: fail if there is no checkpoint.
        overwrite: delete an old run in `output` first.
        seed: seeds everything that is random.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(max_steps=500, batch_size=4, warmup_steps=0, schedule="constant")
    )
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    output: str | None = None
    resume: Resume = "auto"
    overwrite: bool = False
    seed: int = 0


def subject_name(data: DataConfig) -> str:
    """What the run calls its subject: the name of the folder of its pictures."""
    return data.subject or Path(str(data.path)).name.rpartition(":")[2]


def with_places(recipe: DreamboothRecipe) -> DreamboothRecipe:
    """The recipe with an output, and with local paths made absolute: a run is then used from anywhere."""
    model, data = recipe.model, recipe.data
    default = f"runs/dreambooth-{subject_name(data)}-{recipe.adapter.method}-seed{recipe.seed}"
    return replace(
        recipe,
        output=recipe.output or default,
        model=replace(model, name=absolute(model.name) or "", vae=absolute(model.vae), config=absolute(model.config)),
        data=replace(data, path=absolute(data.path), cache_dir=resolved(data.cache_dir)),
        prior=replace(recipe.prior, path=resolved(recipe.prior.path)),
    )


def recipe_problems(recipe: DreamboothRecipe) -> list[str]:
    """All that is impossible in a recipe and can be seen without loading anything."""
    found = adapter_problems(recipe.adapter) + train_problems(recipe.train) + value_problems(recipe)
    for name in ("model", "data", "text_encoder", "prior", "loss", "validation"):
        found += value_problems(getattr(recipe, name), f"{name}.")
    found += frozen_base_problems(recipe.adapter.method, "dreambooth", "SDXL stays frozen")
    found += run_problems(recipe.seed, recipe.data.num_workers)
    if recipe.train.epochs is None and recipe.train.max_steps is None:
        found.append("neither train.epochs nor train.max_steps is given; the paper trains 500 steps")
    if recipe.data.path is None:
        found.append("data.path is missing; give the folder of the subject's pictures (--subject DIR)")
    gamma = recipe.loss.min_snr_gamma
    if gamma is not None and gamma <= 0:
        found.append(f"loss.min_snr_gamma={gamma} must be positive; 5 is usual")
    found += _model_problems(recipe.model) + _data_problems(recipe.data) + _text_encoder_problems(recipe)
    found += _prior_problems(recipe.prior) + _validation_problems(recipe)
    return found


def _model_problems(model: ModelConfig) -> list[str]:
    found = []
    single = Path(model.name).suffix.lower()
    if single in (".ckpt", ".pt", ".pth", ".bin"):
        found.append(f"model.name={model.name} is a pickle, which could run any code; give its .safetensors form")
    if single == ".safetensors" and model.variant is not None:
        found.append(f"model.variant={model.variant} has no effect on a single file")
    if single != ".safetensors" and model.config is not None:
        found.append(f"model.config={model.config} has no effect with model.name={model.name}, which brings its own")
    return found


def _data_problems(data: DataConfig) -> list[str]:
    found = at_least(data, "data", {"resolution": 16, "variants": 1})
    if data.token != data.token.strip() or not data.token:
        found.append(f"data.token={data.token!r} must be a word")
    return found + _prompt_problems("data.prompt", data.prompt, PLACEHOLDERS)


def _text_encoder_problems(recipe: DreamboothRecipe) -> list[str]:
    config, method, found = recipe.text_encoder, recipe.adapter.method, []
    if config.train and method == "adalora":
        found.append(
            "adapter.method=adalora cannot be put on UNet and text encoders at once, since it divides one budget of "
            "ranks; set text_encoder.train=false, or choose another method"
        )
    found += part_rank_problems(config.r, "text_encoder", recipe.adapter)
    if not config.train:
        keys = ("r", "alpha", "learning_rate", "target_modules")
        found += idle_problems(config, "text_encoder", keys, "text_encoder.train=False")
    for key in ("alpha", "learning_rate"):
        value = getattr(config, key)
        if value is not None and value <= 0:
            found.append(f"text_encoder.{key}={value} must be positive")
    return found


def _prior_problems(prior: PriorConfig) -> list[str]:
    found = at_least(prior, "prior", {"weight": 0, "pictures": 1, "steps": 1, "guidance": 0, "batch_size": 1})
    if prior.weight == 0 and prior.path is not None:
        found.append(f"prior.path={prior.path} has no effect with prior.weight=0; DreamBooth's weight is 1")
    return found + _prompt_problems("prior.prompt", prior.prompt, ("class",))


def _validation_problems(recipe: DreamboothRecipe) -> list[str]:
    validation = recipe.validation
    found = at_least(validation, "validation", {"pictures": 1, "steps": 1, "guidance": 0, "seed": 0})
    if validation.prompts is None and recipe.train.evaluate_every > 0:
        found.append(
            f"train.evaluate_every={recipe.train.evaluate_every} has no effect without validation.prompts, of which "
            "pictures are drawn then"
        )
    if not all(prompt.strip() for prompt in validation.prompts or []):
        found.append("validation.prompts has an empty text; give each prompt, or leave it out")
    for prompt in validation.prompts or []:
        found += _prompt_problems("validation.prompts", prompt, PLACEHOLDERS)
    return found


def _prompt_problems(key: str, prompt: str, known: tuple[str, ...]) -> list[str]:
    allowed = " and ".join(f"{{{name}}}" for name in known)
    return [
        f"{key}={prompt!r}: {{{name}}} is not filled in; {allowed} {'are' if len(known) > 1 else 'is'}"
        for name in re.findall(r"\{([^{}]*)\}", prompt)
        if name not in known
    ]


def fill_in(prompt: str, *, token: str, class_word: str) -> str:
    """A prompt with `{token}` and `{class}` filled in."""
    return prompt.replace("{token}", token).replace("{class}", class_word)
