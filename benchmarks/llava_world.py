"""What `benchmarks/llava.py` runs on: LLaVA models of random weights, and conversations of drawn lengths.

No weights and no data are fetched. The lengths are **synthetic**: a mixture that was made up to resemble LLaVA's 665K
conversations (shares of the sources as published, the lengths within a source guessed), not measured on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers import PreTrainedTokenizerFast as FastTokenizer

from common.config import AdapterConfig, Method, Precision, TrainConfig
from llava.assemble import Parts, build
from llava.config import DataConfig, LlavaRecipe, ModelConfig, Quantization
from llava.data import Collate
from llava.model import LlavaBase, prepare_training
from llava.model_files import LazyTensor
from llava.model_projector import PROJECTOR
from llava.model_tokens import Vocabulary

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
PAD, IMAGE = SPECIAL.index("<pad>"), SPECIAL.index("<image>")
MOST_TEXT = 1472
# source: (share, median and spread (sigma of the logarithm) of the text tokens, share of them in answers, picture?)
MIXTURE = {
    "coco: instructions and VQA": (0.547, 190, 0.65, 0.45, True),
    "vg: regions": (0.130, 330, 0.45, 0.40, True),
    "ocr_vqa": (0.120, 130, 0.35, 0.20, True),
    "gqa": (0.109, 190, 0.55, 0.15, True),
    "textvqa: captions": (0.033, 90, 0.40, 0.30, True),
    "text alone": (0.061, 800, 0.85, 0.75, False),
}


@dataclass(frozen=True)
class Shape:
    """The architecture of a LLaVA.

    Args:
        hidden, mlp, layers, heads, kv_heads: of the language model.
        vocabulary: rows of its embedding and its head.
        vision_hidden, vision_mlp, vision_layers, vision_heads: of the tower, as far as it is used.
        grid: patches along a picture's side; a picture takes grid² tokens.
        patch: pixels along a patch's side.
    """

    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    vision_hidden: int
    vision_mlp: int
    vision_layers: int
    vision_heads: int
    grid: int
    patch: int

    @property
    def image_tokens(self) -> int:
        """Tokens of a picture."""
        return self.grid**2

    def config(self) -> LlavaConfig:
        """In transformers' form."""
        text = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=8192,
            rope_theta=500000.0,
            pad_token_id=PAD,
            tie_word_embeddings=False,
        )
        vision = CLIPVisionConfig(
            hidden_size=self.vision_hidden,
            intermediate_size=self.vision_mlp,
            num_hidden_layers=self.vision_layers,
            num_attention_heads=self.vision_heads,
            image_size=self.grid * self.patch,
            patch_size=self.patch,
        )
        return LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=IMAGE,
            image_seq_length=self.image_tokens,
            vision_feature_layer=-1,
            tie_word_embeddings=False,
        )


# LLaMA-3-8B with CLIP ViT-L/14-336, of whose 24 layers 23 are used
LLAMA3_8B = Shape(4096, 14336, 32, 32, 8, 128256, 1024, 4096, 23, 16, grid=24, patch=14)


def tiny_shape(hidden: int, layers: int, vocabulary: int, grid: int) -> Shape:
    """A small one in the proportions of the real ones."""
    heads = max(2, hidden // 32)
    return Shape(hidden, hidden * 7 // 2, layers, heads, heads // 2, vocabulary, 64, 256, 2, 2, grid, patch=2)


def make_base(
    shape: Shape, precision: Precision, device: torch.device, quantization: Quantization = "none"
) -> LlavaBase:
    """A frozen model of random weights, put together as `llava.model.load_model` does, tensor by tensor."""
    config = shape.config()
    with torch.device("meta"):
        shapes = {name: tuple(w.shape) for name, w in LlavaForConditionalGeneration(config).state_dict().items()}
    weights = {name: _random(size, device) for name, size in shapes.items() if not name.startswith(PROJECTOR)}
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(SPECIAL)}, unk_token="<unk>"))
    tokenizer = FastTokenizer(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    vocabulary = Vocabulary(tokenizer, IMAGE, shape.vocabulary)
    torch.manual_seed(0)
    parts = Parts(config, weights, None, vocabulary, {}, "", "")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = build(parts, quantization=quantization, attention="sdpa", dtype=dtype, device=device)
    return LlavaBase(
        model=model,
        tokenizer=tokenizer,
        image_processor=None,  # pictures are drawn as the tower takes them
        processor=None,
        image_token_id=IMAGE,
        image_tokens=shape.image_tokens,
        image_size=shape.grid * shape.patch,
        template="llama3",
        precision=precision,
        fingerprint="",
        projector_fingerprint="",
    )


def _random(size: tuple[int, ...], device: torch.device) -> LazyTensor:
    def draw(index: Any) -> Tensor:
        scale = torch.ones(size) if len(size) == 1 else 0.02 * torch.randn(size, device=device)
        return scale[index]

    return LazyTensor(size, draw)


def adapted(base: LlavaBase, method: Method, r: int, *, checkpointing: bool = False) -> LlavaBase:
    """Attach a method's adapters to language model and tower, in place; the projector is trained too."""
    recipe = LlavaRecipe(
        model=ModelConfig(name="random"),
        data=DataConfig(path="random"),
        adapter=AdapterConfig(method=method, r=r, dropout=0.05),
        train=TrainConfig(epochs=1, precision=base.precision, gradient_checkpointing=checkpointing),
    )
    return prepare_training(base, recipe)


@dataclass(frozen=True)
class Lengths:
    """Drawn conversations.

    Args:
        text: (N,) text tokens.
        answer: (N,) of which supervised.
        has_image: (N,) bool.
        image_tokens: of a picture.
    """

    text: np.ndarray
    answer: np.ndarray
    has_image: np.ndarray
    image_tokens: int

    @property
    def total(self) -> np.ndarray:
        """(N,) all tokens."""
        return self.text + self.has_image * self.image_tokens


def draw_lengths(count: int, shape: Shape, seed: int = 0) -> Lengths:
    """Lengths from `MIXTURE`; where a picture has fewer than 576 tokens, texts are shorter in proportion."""
    rng = np.random.default_rng(seed)
    scale = shape.image_tokens / LLAMA3_8B.image_tokens
    rows = np.array(list(MIXTURE.values()))
    source = rng.choice(len(rows), size=count, p=rows[:, 0] / rows[:, 0].sum())
    median, sigma, answers, pictures = rows[source, 1:].T
    text = np.minimum(rng.lognormal(np.log(median), sigma), MOST_TEXT) * scale
    text = np.maximum(text.astype(np.int64), 4)
    answer = np.clip((text * answers).astype(np.int64), 1, text - 2)
    return Lengths(text, answer, pictures.astype(bool), shape.image_tokens)


class DrawnSamples:
    """Samples of drawn lengths as `llava.data.TrainSamples` gives them; indexed by (epoch, index), or by index."""

    def __init__(self, lengths: Lengths, shape: Shape, seed: int = 0) -> None:
        self.lengths, self._shape, self._seed = lengths, shape, seed

    def __len__(self) -> int:
        return len(self.lengths.text)

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Any]:
        index = key if isinstance(key, int) else key[1]
        generator = torch.Generator().manual_seed(self._seed * len(self) + index)
        text, seen = int(self.lengths.text[index]), bool(self.lengths.has_image[index])
        ids = torch.randint(len(SPECIAL), self._shape.vocabulary, (text,), generator=generator)
        picture = torch.full((self._shape.image_tokens * seen,), IMAGE)
        ids = torch.cat([ids[:1], picture, ids[1:]])
        labels = ids.clone()
        labels[: len(ids) - int(self.lengths.answer[index])] = -100
        side = self._shape.grid * self._shape.patch
        pixels = torch.randn(3, side, side, generator=generator) if seen else None
        return {"input_ids": ids, "labels": labels, "pixel_values": pixels}


def batch_of(samples: Any, indices: list[int], device: torch.device) -> dict[str, Tensor]:
    """A batch as training makes it."""
    batch = Collate(PAD)([samples[(0, index)] for index in indices])
    return {name: tensor.to(device) for name, tensor in batch.items()}
