from __future__ import annotations

from dataclasses import replace

import pytest

from common.config import AdapterConfig
from llava.config import DataConfig, LlavaRecipe, ModelConfig, TowerConfig, recipe_problems


def recipe(method: str, **tower: object) -> LlavaRecipe:
    adapter = AdapterConfig(method=method, r=16)  # type: ignore[arg-type]
    model, data = ModelConfig(name="whole"), DataConfig(path="train.json")
    return LlavaRecipe(model=model, data=data, adapter=adapter, tower=TowerConfig(**tower))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["goat", "goat_plus", "goat_single", "molora", "hydralora", "adamole"])
def test_the_towers_rank_must_hold_every_expert(method: str) -> None:
    assert recipe_problems(recipe(method, r=8)) == []
    assert recipe_problems(recipe(method, r=12)) == ["tower.r=12 is not a multiple of adapter.num_experts=8"]


def test_a_method_without_experts_has_any_rank_on_the_tower() -> None:
    assert recipe_problems(recipe("moslora", r=12)) == []


@pytest.mark.parametrize("method", ["full", "linear_probe", "full_moe"])
def test_methods_that_train_the_base_are_refused(method: str) -> None:
    found = recipe_problems(replace(recipe("lora"), adapter=AdapterConfig(method=method)))  # type: ignore[arg-type]
    assert len(found) == 1
    assert f"adapter.method={method} is not for llava" in found[0]
