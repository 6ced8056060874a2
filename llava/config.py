"""The recipe of the `llava` pipeline. Imports no torch, so that a bad recipe fails at once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from common.config import AdapterConfig, LossMean, OnError, Resume, TrainConfig
from common.config_checks import (
    adapter_problems,
    frozen_base_problems,
    idle_problems,
    part_rank_problems,
    run_problems,
    train_problems,
    value_problems,
)
from common.files import absolute, resolved

Stage = Literal["finetune", "pretrain"]
TemplateName = Literal["vicuna_v1", "llama3", "internlm2", "tokenizer"]
Batching = Literal["length", "modality_length", "random", "packed"]
Quantization = Literal["none", "nf4"]
Attention = Literal["sdpa", "flash_attention_2", "eager"]

# All linear layers of a Llama block, and of a CLIP block, as transformers names them.
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOWER_TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@dataclass(frozen=True)
class ModelConfig:
    """The vision-language model: loaded whole, or assembled from its parts.

    Args:
        name: Hub id or folder of a whole LLaVA model in transformers' form; not to be given with the parts.
        language_model: Hub id or folder of a Llama-like causal language model (LLaMA, Vicuna, InternLM2).
        vision_tower: Hub id or folder of a CLIP vision model.
        projector: file or folder (safetensors) with a trained projector, in the naming of transformers, LLaVA or
            XTuner; none given: a new one, which only `stage=pretrain` may train from nothing.
        quantization: `nf4` keeps the language model in 4 bit with double quantisation.
        attention: the implementation of attention in the language model.
        feature_layer: which layer of the tower gives the picture's features; counted from the end, as in the papers.
        train_projector: whether the projector is trained (at the run's learning rate) and saved with the adapter.
        projector_learning_rate: peak learning rate of the projector; none given: `train.learning_rate`.
        shard: divide the frozen weights among the processes (FSDP2), for GPUs that a whole copy does not fit beside
            the activations. What is trained stays whole in each. Needs torchrun or accelerate; not for `nf4`.
    """

    name: str | None = None
    language_model: str | None = None
    vision_tower: str | None = None
    projector: str | None = None
    quantization: Quantization = "none"
    attention: Attention = "sdpa"
    feature_layer: int = -2
    train_projector: bool = True
    projector_learning_rate: float | None = None
    shard: bool = False


@dataclass(frozen=True)
class DataConfig:
    """The conversations.

    Args:
        path: JSON or JSONL file in LLaVA's schema.
        image_root: folder that the pictures' paths are relative to; none given: the file's own folder.
        validation_path: a second file of the same schema, whose loss is measured during training.
        template: how a conversation becomes text; `tokenizer` uses the chat template that the tokenizer brings.
        max_text_tokens: longer conversations lose whole turns from their end, then text; picture tokens not counted.
        batching: `length`: samples of like length share a batch; `modality_length`: text-only samples apart as well;
            `random`: as they come; `packed`: several samples in one row, their positions restarted.
        packed_length: tokens of a row (picture tokens counted) when packed; none given: room for two
            of the longest samples.
        cache_dir: where verified indices are kept; none given: `$MOSGOAT_CACHE` or `~/.cache/mosgoat`.
        on_error: what a defective conversation or picture does: `skip` leaves it out, counted and named; `raise` stops.
        num_workers: processes that prepare batches; none given: one less than the cores, at most 8.
    """

    path: str | None = None
    image_root: str | None = None
    validation_path: str | None = None
    template: TemplateName = "vicuna_v1"
    max_text_tokens: int = 1472
    batching: Batching = "length"
    packed_length: int | None = None
    cache_dir: str | None = None
    on_error: OnError = "skip"
    num_workers: int | None = None


@dataclass(frozen=True)
class TowerConfig:
    """What of the adapter is put on the vision tower.

    Args:
        adapt: whether the tower gets the adapter too; else it is frozen.
        r: rank there; none given: `adapter.r`.
        alpha: alpha there; none given: `adapter.alpha`.
        target_modules: ends of names of the tower's layers; none given: q, k, v, out and both layers of the MLP.
        mixer: `same` as the language model's method has, or `identity` (moslora becomes plain LoRA on the tower).
    """

    adapt: bool = True
    r: int | None = None
    alpha: float | None = None
    target_modules: list[str] | None = None
    mixer: Literal["same", "identity"] = "same"


@dataclass(frozen=True)
class LlavaRecipe:
    """Fine-tune a LLaVA-1.5 model on visual instructions.

    Args:
        model: the model and its parts.
        data: the conversations.
        adapter: what is trained in the language model.
        tower: what of it is put on the vision tower.
        train: how it is trained.
        stage: `finetune` trains adapters (and the projector); `pretrain` trains the projector alone, and the sections
            adapter and tower are not used.
        loss_mean: `global_batch`: mean over the supervised tokens of the whole step (long answers weigh more);
            `micro_batch`: mean of the micro-batches' means, as LLaVA and XTuner compute it.
        output: the run directory to make; none given: `runs/llava-METHOD-seedSEED`.
        resume: `auto`: go on from the newest whole checkpoint in `output` if there is one; `never`: refuse an
            `output` that holds a run; `must`: fail if there is no checkpoint.
        overwrite: delete an old run in `output` first.
        seed: seeds everything that is random.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    tower: TowerConfig = field(default_factory=TowerConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=1))
    stage: Stage = "finetune"
    loss_mean: LossMean = "global_batch"
    output: str | None = None
    resume: Resume = "auto"
    overwrite: bool = False
    seed: int = 0


def with_places(recipe: LlavaRecipe) -> LlavaRecipe:
    """The recipe with an output, and with local paths made absolute: a run is then used from anywhere."""
    model, data = recipe.model, recipe.data
    trained = "projector" if recipe.stage == "pretrain" else recipe.adapter.method
    return replace(
        recipe,
        output=recipe.output or f"runs/llava-{trained}-seed{recipe.seed}",
        model=replace(
            model,
            name=absolute(model.name),
            language_model=absolute(model.language_model),
            vision_tower=absolute(model.vision_tower),
            projector=absolute(model.projector),
        ),
        data=replace(
            data,
            path=absolute(data.path),
            image_root=absolute(data.image_root),
            validation_path=absolute(data.validation_path),
            cache_dir=resolved(data.cache_dir),
        ),
    )


def recipe_problems(recipe: LlavaRecipe) -> list[str]:
    """All that is impossible in a recipe and can be seen without loading anything."""
    found = train_problems(recipe.train)
    found += [
        problem
        for section, prefix in (
            (recipe, ""),
            (recipe.model, "model."),
            (recipe.data, "data."),
            (recipe.tower, "tower."),
        )
        for problem in value_problems(section, prefix)
    ]
    found += _model_problems(recipe) + _data_problems(recipe.data)
    if recipe.stage == "finetune":
        found += adapter_problems(recipe.adapter) + _tower_problems(recipe)
    found += run_problems(recipe.seed, recipe.data.num_workers)
    if recipe.train.epochs is None and recipe.train.max_steps is None:
        found.append("neither train.epochs nor train.max_steps is given; LLaVA-1.5 trains one epoch")
    if recipe.data.path is None:
        found.append("data.path is missing; give the JSON file of the conversations")
    return found


def _model_problems(recipe: LlavaRecipe) -> list[str]:
    model, found = recipe.model, []
    parts = {key: getattr(model, key) for key in ("language_model", "vision_tower")}
    if model.name is not None:
        found += [
            f"model.{key}={value} has no effect with model.name={model.name}; leave one of the two out"
            for key, value in {**parts, "projector": model.projector}.items()
            if value is not None
        ]
    else:
        found += [
            f"model.{key} is missing; give it, or a whole model with model.name"
            for key, value in parts.items()
            if value is None
        ]
        if recipe.stage == "finetune" and model.projector is None and not found:
            found.append(
                "model.projector is missing: a projector of random weights would hide the picture from the language "
                "model; train one with stage=pretrain, or give a pretrained one"
            )
    if recipe.stage == "pretrain" and not model.train_projector:
        found.append("model.train_projector=False leaves nothing to train with stage=pretrain")
    rate = model.projector_learning_rate
    if rate is not None and rate <= 0:
        found.append(f"model.projector_learning_rate={rate} must be positive")
    if rate is not None and not model.train_projector:
        found.append(f"model.projector_learning_rate={rate} has no effect with model.train_projector=False")
    if model.shard and model.quantization != "none":
        found.append(
            f"model.shard=True is not for model.quantization={model.quantization}, whose packed weights cannot be "
            "divided; a model in 4 bit fits on every GPU, leave model.shard out"
        )
    if model.feature_layer >= 0:
        found.append(f"model.feature_layer={model.feature_layer} must be negative: it is counted from the last layer")
    return found


def _data_problems(data: DataConfig) -> list[str]:
    found = []
    if data.max_text_tokens < 8:
        found.append(f"data.max_text_tokens={data.max_text_tokens} must be at least 8")
    if data.packed_length is not None and data.batching != "packed":
        found.append(f"data.packed_length={data.packed_length} has no effect with data.batching={data.batching}")
    if data.packed_length is not None and data.packed_length < data.max_text_tokens:
        found.append(
            f"data.packed_length={data.packed_length} must not be less than "
            f"data.max_text_tokens={data.max_text_tokens}: a sample has to fit into a row"
        )
    return found


def _tower_problems(recipe: LlavaRecipe) -> list[str]:
    tower, method = recipe.tower, recipe.adapter.method
    stays = "the language model stays frozen (stage=pretrain trains the projector alone)"
    found = frozen_base_problems(method, "llava", stays)
    if tower.mixer == "identity" and method not in ("moslora", "ts_mixing"):
        found.append(
            f"tower.mixer=identity has no effect with adapter.method={method}; it is for moslora and ts_mixing"
        )
    if not tower.adapt:
        found += idle_problems(tower, "tower", ("r", "alpha", "target_modules"), "tower.adapt=False")
    return found + part_rank_problems(tower.r, "tower", recipe.adapter)
