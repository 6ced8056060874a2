"""The recipe of the `vit_classify` pipeline. Imports no torch, so that a bad recipe fails at once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from common.config import AdapterConfig, OnError, Resume, TrainConfig
from common.config_checks import adapter_problems, run_problems, train_problems, value_problems
from common.files import absolute, resolved

Head = Literal["zero_shot", "linear"]
Activation = Literal["quick_gelu", "gelu"]
Pixels = Literal["cache", "decode"]

# q, k, v, out of attention and the two layers of the MLP, as open_clip and our split attention name them.
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj")


@dataclass(frozen=True)
class ModelConfig:
    """The CLIP model whose vision tower is adapted.

    Args:
        name: an open_clip architecture (`ViT-B-32-quickgelu`), `hf-hub:ORG/NAME`, or `local-dir:PATH` of a
            folder with `open_clip_config.json` and `open_clip_model.safetensors`.
        weights: an open_clip tag or the path of a safetensors file; none given: `openai`. Not to be given with
            `hf-hub:` and `local-dir:`, which bring their own.
        head: `zero_shot`: frozen text features of the set's prompts; `linear`: a new trained layer on the
            mean of the patch tokens.
        activation: the activation that a weights file was trained with; to be given only where the file does
            not say so itself, since a mismatch is silent (OpenAI, laion400m: `quick_gelu`; laion2b: `gelu`).
    """

    name: str = "ViT-B-32-quickgelu"
    weights: str | None = None
    head: Head = "zero_shot"
    activation: Activation | None = None


@dataclass(frozen=True)
class DataConfig:
    """The pictures.

    Args:
        name: one of the seven sets (cars, dtd, eurosat, gtsrb, resisc45, sun397, svhn), or a name of your own
            for data given by `source`.
        source: where the pictures are: a Hub id, a folder with `train/CLASS/*` and `test/CLASS/*`, a folder of
            parquet files, or a `save_to_disk` folder; none given: the set's repository on the Hub.
        class_names: JSON file that maps a class (folder name or label) to the words to use in prompts.
        templates: prompts with `{}` for the class; none given: the set's own, or "a photo of a {}.".
        pixels: `cache`: decode once into a memory map; `decode`: decode again in every epoch, same pixels.
        cache_dir: where caches are kept; none given: `$MOSGOAT_CACHE` or `~/.cache/mosgoat`.
        store_size: pictures are stored with their shorter side at most this many pixels.
        validation_fraction: share of the training pictures held out (at most 5000 of them); without effect where
            the source has a validation split, and for eurosat, whose protocol holds nothing out.
        on_error: what an unreadable picture does: `skip` leaves it out, counted and named; `raise` stops.
        num_workers: processes that prepare batches; none given: one less than the cores, at most 8.
    """

    name: str = "dtd"
    source: str | None = None
    class_names: str | None = None
    templates: list[str] | None = None
    pixels: Pixels = "cache"
    cache_dir: str | None = None
    store_size: int = 256
    validation_fraction: float = 0.1
    on_error: OnError = "skip"
    num_workers: int | None = None


@dataclass(frozen=True)
class VitRecipe:
    """Fine-tune a CLIP vision tower on an image classification set.

    Args:
        model: the CLIP model.
        data: the pictures.
        adapter: what is trained.
        train: how it is trained.
        output: the run directory to make; none given: `runs/SET-METHOD-seedSEED`.
        resume: `auto`: go on from the newest whole checkpoint in `output` if there is one; `never`: refuse an
            `output` that holds a run; `must`: fail if there is no checkpoint.
        overwrite: delete an old run in `output` first.
        seed: seeds everything that is random.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    output: str | None = None
    resume: Resume = "auto"
    overwrite: bool = False
    seed: int = 0


def with_places(recipe: VitRecipe) -> VitRecipe:
    """The recipe with an output, and with local paths made absolute: a run is then measured from anywhere."""
    model, data = recipe.model, recipe.data
    prefix, folder = "local-dir:", model.name.removeprefix("local-dir:")
    name = f"{prefix}{absolute(folder)}" if model.name.startswith(prefix) else model.name
    default = f"runs/{data.name.replace('/', '-')}-{recipe.adapter.method}-seed{recipe.seed}"
    return replace(
        recipe,
        output=recipe.output or default,
        model=replace(model, name=name, weights=absolute(model.weights)),
        data=replace(
            data,
            source=absolute(data.source),
            class_names=absolute(data.class_names),
            cache_dir=resolved(data.cache_dir),
        ),
    )


def recipe_problems(recipe: VitRecipe) -> list[str]:
    """All that is impossible in a recipe and can be seen without loading anything."""
    found = adapter_problems(recipe.adapter) + train_problems(recipe.train)
    data = recipe.data
    found += value_problems(recipe) + value_problems(recipe.model, "model.") + value_problems(data, "data.")
    found += run_problems(recipe.seed, data.num_workers)
    if not 0 < data.validation_fraction < 1:
        found.append(f"data.validation_fraction={data.validation_fraction} must lie strictly between 0 and 1")
    if data.store_size < 16:
        found.append(f"data.store_size={data.store_size} must be at least 16 pixels")
    for template in data.templates or []:
        if "{}" not in template:
            found.append(f"data.templates: {template!r} has no {{}} for the class name")
    if recipe.adapter.method == "linear_probe" and recipe.model.head != "linear":
        found.append("adapter.method=linear_probe trains only a head; set model.head=linear")
    if recipe.model.name.startswith(("builtin:", "local-dir:", "hf-hub:")) and recipe.model.weights is not None:
        found.append(
            f"model.weights={recipe.model.weights} has no effect with model.name={recipe.model.name}, "
            "which brings its own; leave it out or set it to null"
        )
    return found
