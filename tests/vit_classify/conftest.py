"""A tiny CLIP in open_clip's own form, for tests of the model."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from tests.vit_classify.classifiers import CLASSES, TEMPLATES, Load
from vit_classify.checkpoint import write_local
from vit_classify.config import ModelConfig
from vit_classify.model import VitClassifier, load_model

TINY: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def tiny_cfg() -> dict[str, Any]:
    return TINY


@pytest.fixture(scope="session")
def tiny_clip() -> open_clip.CLIP:
    """Random weights, unevenly scaled so that no layer is a bystander; not to be changed by a test."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**TINY)
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "ln_pre.weight", "ln_post.weight")):
                torch.nn.init.normal_(parameter, mean=float("weight" in name), std=0.2)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_base(tiny_clip: open_clip.CLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `local-dir:` reads."""
    return write_local(tiny_clip.state_dict(), TINY, tmp_path_factory.mktemp("tiny_base"))


@pytest.fixture
def load_tiny(tiny_base: Path) -> Load:
    def load(head: str = "zero_shot", **options: Any) -> VitClassifier:
        return load_model(ModelConfig(f"local-dir:{tiny_base}", head=head), CLASSES, TEMPLATES, **options)  # type: ignore[arg-type]

    return load
