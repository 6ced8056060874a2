"""The heads compute what their sources compute."""

import copy
import re
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPForImageClassification

from common.errors import UserError
from vit_classify.attention import split_attention
from vit_classify.head import LinearHead, ZeroShotHead, read_patch_tokens, zero_shot_weight

CLASSES = ["annual crop land", "{forest}", "sea or lake"]
TEMPLATES = ["a photo of a {}.", "{}, seen from above", "the {} and another {}"]


def test_zero_shot_weight_equals_the_ensemble_written_out_in_float64(tiny_clip: open_clip.CLIP) -> None:
    exact = copy.deepcopy(tiny_clip).double()
    tokenizer = open_clip.SimpleTokenizer()
    rows = []
    for words in CLASSES:
        features = []
        for text in ("a photo of a " + words + ".", words + ", seen from above", f"the {words} and another {words}"):
            feature = exact.encode_text(tokenizer([text]))[0]
            features.append(feature / feature.square().sum().sqrt())
        mean = (features[0] + features[1] + features[2]) / 3
        rows.append(mean / mean.square().sum().sqrt() * torch.exp(exact.logit_scale))
    weight = zero_shot_weight(tiny_clip, tokenizer, CLASSES, TEMPLATES)
    assert weight.dtype == torch.float32
    # float32 text tower against float64; the logit scale of 14 is in the values
    torch.testing.assert_close(weight.double(), torch.stack(rows), rtol=1e-5, atol=1e-5)


def test_many_prompts_are_encoded_in_batches_with_the_same_result(tiny_clip: open_clip.CLIP) -> None:
    tokenizer = open_clip.SimpleTokenizer()
    names = [f"thing number {i}" for i in range(100)]
    together = zero_shot_weight(tiny_clip, tokenizer, names, TEMPLATES)  # 300 prompts: two batches
    alone = zero_shot_weight(tiny_clip, tokenizer, names[90:], TEMPLATES)
    # another batch size sums in another order
    torch.testing.assert_close(together[90:], alone, rtol=1e-5, atol=1e-5)


def test_zero_shot_logits_are_scaled_cosines_in_float32_even_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, features = torch.randn(3, 8, generator=generator), torch.randn(5, 8, generator=generator)
    head = ZeroShotHead(weight, CLASSES, TEMPLATES)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(features)
    expected = (features / features.norm(dim=1, keepdim=True)) @ weight.T
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected)  # bfloat16 would be off by 1e-2


def test_zero_shot_head_has_nothing_to_train_and_keeps_its_weight_in_a_checkpoint() -> None:
    head = ZeroShotHead(torch.randn(3, 8), CLASSES, TEMPLATES)
    assert list(head.parameters()) == []
    assert list(head.state_dict()) == ["weight"]


def _as_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of our split tower → names of transformers' vision model (behind `vision_model.`)."""
    renamed = {
        "class_embedding": "embeddings.class_embedding",
        "positional_embedding": "embeddings.position_embedding.weight",
        "conv1.weight": "embeddings.patch_embedding.weight",
    }
    parts = {
        "transformer.resblocks": "encoder.layers",
        ".attn.": ".self_attn.",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "c_fc": "fc1",
        "c_proj": "fc2",
        "ln_pre": "pre_layrnorm",
    }
    found = {}
    for key, value in state.items():
        name = renamed.get(key, key)
        for ours, theirs in parts.items():
            name = name.replace(ours, theirs)
        found[name] = value
    return found


def test_linear_head_equals_the_classifier_of_transformers_which_goat_was_measured_with(
    tiny_clip: open_clip.CLIP, tiny_cfg: dict[str, Any]
) -> None:
    vision = tiny_cfg["vision_cfg"]
    config = CLIPConfig(
        vision_config={
            "hidden_size": vision["width"],
            "num_attention_heads": vision["width"] // vision["head_width"],
            "num_hidden_layers": vision["layers"],
            "intermediate_size": 4 * vision["width"],
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_act": "quick_gelu",
        },
        num_labels=3,
    )
    theirs = CLIPForImageClassification(config).eval()
    tower = read_patch_tokens(split_attention(copy.deepcopy(tiny_clip.visual)))
    head = LinearHead(vision["width"], CLASSES, seed=3)
    named = _as_transformers(tower.state_dict())
    state = {}
    for key in theirs.state_dict():
        if key.startswith("classifier."):
            state[key] = head.state_dict()[key.removeprefix("classifier.")]
        elif "post_layernorm" not in key:  # unused by this classifier
            state[key] = named.pop(re.sub(r"^(vision_model\.)+", "", key))
    assert not named, "a weight of ours has no counterpart"
    theirs.load_state_dict(state, strict=False)
    pictures = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # the same float32 operations in another order
        torch.testing.assert_close(head(tower(pictures)), theirs(pictures).logits, rtol=1e-4, atol=1e-5)


def test_linear_head_is_a_function_of_its_seed_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (LinearHead(16, CLASSES, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    assert not first.bias.any()


def test_full_training_with_a_linear_head_leaves_no_weight_without_gradient(tiny_clip: open_clip.CLIP) -> None:
    tower = read_patch_tokens(split_attention(copy.deepcopy(tiny_clip.visual))).requires_grad_(True)
    LinearHead(64, CLASSES)(tower(torch.randn(2, 3, 32, 32))).logsumexp(1).sum().backward()
    assert [name for name, parameter in tower.named_parameters() if parameter.grad is None] == []


def test_a_linear_head_needs_a_class_token(tiny_cfg: dict[str, Any]) -> None:
    vision = {**tiny_cfg["vision_cfg"], "pool_type": "avg"}
    tower: nn.Module = open_clip.CLIP(**{**tiny_cfg, "vision_cfg": vision}).visual
    with pytest.raises(UserError, match=r"model\.head"):
        read_patch_tokens(tower)
