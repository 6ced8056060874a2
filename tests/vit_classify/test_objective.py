"""The loss is normalised as the engine needs it, and training on it learns."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.config import AdapterConfig
from vit_classify.config import ModelConfig
from vit_classify.data import DeviceTransform
from vit_classify.model import load_model, prepare_training
from vit_classify.objective import ClassificationObjective


def pixels_of(batch: Mapping[str, Tensor]) -> Tensor:
    return batch["pixels"]


@pytest.fixture
def objective() -> ClassificationObjective:
    torch.manual_seed(0)
    return ClassificationObjective(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), pixels_of)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"pixels": torch.randn(6, 3, 2, 2, generator=generator), "labels": torch.tensor([0, 1, 2, -100, 1, 0])}


def test_loss_is_the_mean_over_supervised_items(objective: ClassificationObjective, batch: dict[str, Tensor]) -> None:
    out = objective(**batch)
    kept = batch["labels"] != -100
    logits = objective.classifier(batch["pixels"])[kept]
    assert out["loss"].shape == out["accuracy"].shape == ()
    torch.testing.assert_close(out["loss"], F.cross_entropy(logits, batch["labels"][kept]))
    assert out["accuracy"].item() == pytest.approx((logits.argmax(1) == batch["labels"][kept]).float().mean().item())


@pytest.mark.parametrize("kind", [int, torch.tensor])
def test_micro_batches_of_unequal_size_add_up_to_the_whole_batch(
    objective: ClassificationObjective, batch: dict[str, Tensor], kind: type
) -> None:
    whole = objective(**batch)["loss"]
    parts = [
        objective(**{key: value[rows] for key, value in batch.items()}, num_items_in_batch=kind(5))["loss"]
        for rows in (slice(0, 4), slice(4, 6))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_a_batch_without_supervised_items_has_loss_and_gradient_zero(
    objective: ClassificationObjective, batch: dict[str, Tensor]
) -> None:
    out = objective(pixels=batch["pixels"], labels=torch.full((6,), -100))
    out["loss"].backward()
    assert out["loss"].item() == out["accuracy"].item() == 0
    assert all(not parameter.grad.any() for parameter in objective.parameters() if parameter.grad is not None)


def test_cross_entropy_is_computed_in_float32_under_autocast(
    objective: ClassificationObjective, batch: dict[str, Tensor]
) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert objective(**batch)["loss"].dtype == torch.float32


def test_no_gradient_flows_into_the_transform(batch: dict[str, Tensor]) -> None:
    scale = nn.Parameter(torch.ones(()))
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    ClassificationObjective(classifier, lambda b: b["pixels"] * scale)(**batch)["loss"].backward()
    assert scale.grad is None


@pytest.mark.parametrize(("method", "head"), [("goat", "zero_shot"), ("moslora", "linear"), ("full", "linear")])
def test_a_few_steps_fit_a_few_pictures(tiny_base: Path, method: str, head: str) -> None:
    torch.manual_seed(0)
    model = ModelConfig(f"local-dir:{tiny_base}", head=head)  # type: ignore[arg-type]
    classifier = load_model(model, ["one", "two", "three"], ["a {}"])
    prepare_training(classifier, AdapterConfig(method))  # type: ignore[arg-type]
    objective = ClassificationObjective(
        classifier.train(), DeviceTransform(classifier.image_size, classifier.mean, classifier.std)
    )
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3, weight_decay=0)
    images = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(9) % 3
    for _ in range(60):
        optimizer.zero_grad()
        out = objective(images=images, labels=labels)
        out["loss"].backward()
        optimizer.step()
    assert out["accuracy"].item() == 1
    assert out["loss"].item() < 0.5
