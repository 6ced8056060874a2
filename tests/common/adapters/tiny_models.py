"""Tiny models with the module names of the real ones: an MLP, CLIP's tower, LLaVA and SDXL's UNet.

Each is built once per process, in milliseconds, and copied for every test that asks for it. The libraries are
imported on use: most tests of adapters need the MLP only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

_IMAGE_TOKEN = 63
# inputs of 64, 128, ...: on some CPUs bitsandbytes needs whole blocks of 64 to run a 4-bit layer
_VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
_PICTURE = {"image_size": 16, "patch_size": 8}  # 4 patches


class Mlp(nn.Module):
    """Two linear layers of different sizes and a nonlinearity: (..., 24) -> (..., 20)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(24, 40)
        self.act = nn.Tanh()
        self.fc2 = nn.Linear(40, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def _clip() -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig(**_VISION, **_PICTURE))


def _llava() -> nn.Module:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    text = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=64,
        max_position_embeddings=64,
    )
    # the real one takes the layer before the last, whose adapters of the last layer would get no gradient
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_VISION, **_PICTURE),
        text_config=text,
        image_token_index=_IMAGE_TOKEN,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config)


def _sdxl_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2),
        use_linear_projection=True,
        cross_attention_dim=24,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )


def _mlp_batch(draw: torch.Generator) -> dict[str, Tensor]:
    return {"x": torch.randn(3, 5, 24, generator=draw)}


def _clip_batch(draw: torch.Generator) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=draw)}


def _llava_batch(draw: torch.Generator) -> dict[str, Tensor]:
    words = torch.randint(_IMAGE_TOKEN, (2, 9), generator=draw)
    words[:, 1:5] = _IMAGE_TOKEN
    return {"input_ids": words, "attention_mask": torch.ones_like(words), **_clip_batch(draw)}


def _sdxl_batch(draw: torch.Generator) -> dict[str, object]:
    return {
        "sample": torch.randn(2, 4, 8, 8, generator=draw),
        "timestep": torch.tensor([3, 700]),
        "encoder_hidden_states": torch.randn(2, 7, 24, generator=draw),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(2, 16, generator=draw),
            "time_ids": torch.randint(64, (2, 6), generator=draw),
        },
    }


def _first_tensor(output: object) -> Tensor:
    for name in ("logits", "sample", "last_hidden_state"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    assert isinstance(output, Tensor)
    return output


@dataclass(frozen=True)
class TinyModel:
    """One of the models.

    Args:
        create: makes it with weights drawn from torch's generator.
        draw_batch: makes the arguments of its forward.
        targets: names of the layers to adapt.
        whole: name of a module to be trained whole.
        layer: end of the name of one of the adapted layers.
    """

    create: Callable[[], nn.Module]
    draw_batch: Callable[[torch.Generator], dict]
    targets: tuple[str, ...]
    whole: str
    layer: str

    def batch(self, seed: int = 9) -> dict:
        """The arguments of a forward pass."""
        return self.draw_batch(torch.Generator().manual_seed(seed))

    def output(self, model: nn.Module, seed: int = 9) -> Tensor:
        """The tensor that a forward pass of the model, adapted or not, gives on `batch(seed)`."""
        return _first_tensor(model(**self.batch(seed)))


MODELS = {
    "mlp": TinyModel(Mlp, _mlp_batch, ("fc1", "fc2"), "fc2", "fc1"),
    "clip": TinyModel(
        _clip,
        _clip_batch,
        ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        "pre_layrnorm",  # so it is spelt
        "layers.1.self_attn.q_proj",
    ),
    "llava": TinyModel(
        _llava,
        _llava_batch,
        ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj"),
        "multi_modal_projector",
        "layers.1.mlp.up_proj",
    ),
    "sdxl": TinyModel(
        _sdxl_unet,
        _sdxl_batch,
        ("to_q", "to_k", "to_v", "to_out.0"),
        "conv_out",
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    ),
}


@cache
def _built(name: str) -> nn.Module:
    torch.manual_seed(1)
    return MODELS[name].create().eval()


def tiny(name: str) -> nn.Module:
    """A fresh copy of a tiny model in evaluation mode, with the same weights every time."""
    return copy.deepcopy(_built(name))


def shake(model: nn.Module) -> None:
    """Move every trained parameter away from its start, B = 0 included, so that every weight matters."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
