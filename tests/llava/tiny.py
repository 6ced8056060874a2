"""A LLaVA of a few thousand parameters, written the way the real ones lie on the Hub."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from common.config import AdapterConfig, Precision, TrainConfig
from llava.config import DataConfig, LlavaRecipe, ModelConfig
from llava.model import LlavaBase, load_model, save_run

HIDDEN, MLP = 64, 128  # bitsandbytes' kernels for the CPU want multiples of 64
# of a small language model of any kind that has these settings
SIZES = {
    "vocab_size": 381,
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
IMAGE_SIZE, PATCH = 28, 14  # 4 tokens a picture
# what the templates of Vicuna, LLaMA-3 and InternLM2 need
TEMPLATE_TOKENS = [
    "<unk>",
    "<s>",
    "</s>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|im_start|>",
    "<|im_end|>",
    "<pad>",
]
_TEXT = [
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: What is in the picture? ASSISTANT: A red circle, a blue square.",
    "How many cats are there? There are two cats on the table. Answer with the option's letter from the given choices.",
    "user assistant system yes no left right above below one two three four five colour shape count position",
]


@dataclass(frozen=True)
class TinyLlava:
    """Where the parts lie.

    Args:
        language_model: folder of a Llama with its tokenizer.
        vision_tower: folder of a CLIP vision model.
        projector: safetensors file in transformers' naming.
        whole: folder of a whole LLaVA made of the three, feature layer -2, with its tokenizer.
    """

    language_model: Path
    vision_tower: Path
    projector: Path
    whole: Path


def make_tokenizer(extra: tuple[str, ...] = ("<image>",), *, pad: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE of about 400 tokens with the special tokens of all templates, and `extra` behind them."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=TEMPLATE_TOKENS[:],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_TEXT, trainer)
    backend.add_special_tokens(list(extra))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>" if pad else None,
    )


def llama_config(vocab_size: int, **changes: object) -> LlamaConfig:
    values = {
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,  # answers that differ from token to token
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    return LlamaConfig(**{**values, **changes})


def vision_config(**changes: object) -> CLIPVisionConfig:
    values = {
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
        "initializer_factor": 2.0,
    }
    return CLIPVisionConfig(**{**values, **changes})


def tiny_llava(directory: Path, tokenizer: PreTrainedTokenizerFast | None = None, seed: int = 0) -> TinyLlava:
    """Write the parts of a tiny LLaVA and the whole of them below `directory`; fixed random weights."""
    tokenizer = tokenizer or make_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text, vision = llama_config(len(tokenizer)), vision_config()
        config = LlavaConfig(
            text_config=text,
            vision_config=vision,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=(IMAGE_SIZE // PATCH) ** 2,
            vision_feature_layer=-2,
        )
        whole = LlavaForConditionalGeneration(config)
        for linear in (whole.model.multi_modal_projector.linear_1, whole.model.multi_modal_projector.linear_2):
            torch.nn.init.normal_(linear.weight, std=0.3)
            torch.nn.init.normal_(linear.bias, std=0.1)
        language_model, tower = LlamaForCausalLM(text), CLIPVisionModel(vision)
    language_model.model.load_state_dict(whole.model.language_model.state_dict())
    language_model.lm_head.load_state_dict(whole.lm_head.state_dict())
    tower.load_state_dict(whole.model.vision_tower.state_dict())

    paths = TinyLlava(
        directory / "language_model",
        directory / "vision_tower",
        directory / "projector.safetensors",
        directory / "whole",
    )
    language_model.save_pretrained(paths.language_model)
    tokenizer.save_pretrained(paths.language_model)
    tower.save_pretrained(paths.vision_tower)
    projector = whole.model.multi_modal_projector.state_dict(prefix="multi_modal_projector.")
    save_file({key: value.contiguous() for key, value in projector.items()}, paths.projector)
    whole.save_pretrained(paths.whole)
    tokenizer.save_pretrained(paths.whole)
    return paths


def parts_of(tiny: TinyLlava, **changes: Any) -> ModelConfig:
    """The model section that puts the three parts together."""
    values = {
        "language_model": str(tiny.language_model),
        "vision_tower": str(tiny.vision_tower),
        "projector": str(tiny.projector),
    }
    return ModelConfig(**{**values, **changes})


def recipe_of(model: ModelConfig, *, precision: Precision = "float32", **changes: Any) -> LlavaRecipe:
    """A recipe with MoSLoRA of rank 4 on everything, unless changed; its data are never opened."""
    train = TrainConfig(epochs=1, precision=precision, gradient_checkpointing=changes.pop("checkpointing", False))
    values: dict[str, Any] = {
        "adapter": AdapterConfig(method="moslora", r=4),
        "data": DataConfig(path="conversations.json", template="llama3"),
    }
    return LlavaRecipe(model=model, train=train, **{**values, **changes})


def batch_of(base: LlavaBase, text: str = "What is in the picture?", seed: int = 0) -> dict[str, Tensor]:
    """One row: a picture of noise and a question, as the model takes it."""
    ids = [base.image_token_id] * base.image_tokens + base.tokenizer.encode(text, add_special_tokens=False)
    noise = torch.randn(1, 3, base.image_size, base.image_size, generator=torch.Generator().manual_seed(seed))
    return {"input_ids": torch.tensor([ids]), "pixel_values": noise}


def logits_of(base: LlavaBase, batch: dict[str, Tensor]) -> Tensor:
    """(1, T, V) float32."""
    with torch.no_grad(), base.autocast():
        return base.model(**batch).logits.float()


def disturb(model: nn.Module, seed: int = 1) -> None:
    """Move all that is trained away from its start, where an adapter has no effect yet."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def write_run(base: LlavaBase, recipe: LlavaRecipe, path: Path) -> Path:
    """What `mosgoat llava train` leaves of a run, as far as opening it goes."""
    save_run(base, path)
    (path / "config.yaml").write_text(yaml.safe_dump(asdict(recipe)))
    return path


def load(config: ModelConfig, **options: Any) -> LlavaBase:
    """`load_model` with the template of LLaMA-3."""
    return load_model(config, template="llama3", **options)


def copy_of(folder: Path, target: Path) -> Path:
    """A copy of a folder of the tiny model, to be changed."""
    return Path(shutil.copytree(folder, target))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Rewrite a folder's weights after `change` has been at them."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
