"""Small models in folders, as their configurations would lie there without weights."""

import json
from pathlib import Path

import pytest

from common.counting import Architecture, find_model

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
CLIP = {
    "model_type": "clip_vision_model",
    "architectures": ["CLIPVisionModelWithProjection"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 16,
}
UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "block_out_channels": [8],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D"],
    "mid_block_type": None,
    "up_block_types": ["CrossAttnUpBlock2D"],
    "attention_head_dim": 1,
    "use_linear_projection": True,
    "cross_attention_dim": 24,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}
LLAVA = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "vision_config": {**CLIP, "architectures": None},
    "text_config": {**LLAMA, "architectures": None},
    "image_token_index": 49,
}


def write_config(folder: Path, config: dict[str, object]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name of a small model -> folder that holds its config.json."""
    models = {"llama": LLAMA, "clip": CLIP, "unet": UNET, "llava": LLAVA}
    parent = tmp_path_factory.mktemp("models")
    return {name: write_config(parent / name, config) for name, config in models.items()}


@pytest.fixture(scope="session")
def llama(folders: dict[str, str]) -> Architecture:
    return find_model(folders["llama"])
