"""The recipe of vit_classify: impossible values, and the places it names."""

from dataclasses import replace
from pathlib import Path

import pytest

from common.config import AdapterConfig
from vit_classify.config import DataConfig, ModelConfig, VitRecipe, recipe_problems, with_places


def test_defaults_are_sound() -> None:
    assert recipe_problems(VitRecipe()) == []


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (VitRecipe(data=DataConfig(validation_fraction=1.0)), ["data.validation_fraction=1.0", "between 0 and 1"]),
        (VitRecipe(data=DataConfig(store_size=8)), ["data.store_size=8", "at least 16"]),
        (VitRecipe(data=DataConfig(num_workers=-1)), ["data.num_workers=-1", "between 0 and"]),
        (VitRecipe(data=DataConfig(num_workers=10**6)), ["data.num_workers=1000000", "between 0 and 1024"]),
        (VitRecipe(data=DataConfig(source="")), ["data.source is an empty text", "leave the key out"]),
        (VitRecipe(data=DataConfig(templates=[])), ["data.templates is an empty list"]),
        (VitRecipe(output=""), ["output is an empty text"]),
        (VitRecipe(seed=-1), ["seed=-1", "negative"]),
        (VitRecipe(seed=2**32), [f"seed={2**32}", "less than"]),
        (VitRecipe(data=DataConfig(templates=["a photo"])), ["'a photo'", "{}"]),
        (VitRecipe(adapter=AdapterConfig(method="linear_probe")), ["linear_probe", "model.head=linear"]),
        (VitRecipe(model=ModelConfig("local-dir:x", "openai")), ["model.weights=openai", "no effect"]),
    ],
)
def test_impossible_value_is_named(recipe: VitRecipe, words: list[str]) -> None:
    (problem,) = recipe_problems(recipe)
    assert all(word in problem for word in words), problem


def test_local_paths_become_absolute_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "signs").mkdir()
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    local = with_places(VitRecipe(ModelConfig("local-dir:base"), DataConfig("mine", "signs")))
    assert local.model.name == f"local-dir:{tmp_path.resolve() / 'base'}"
    assert local.data.source == str(tmp_path.resolve() / "signs")
    named = VitRecipe(ModelConfig(weights="openai"), DataConfig("dtd", "tanganke/dtd"), output="here")
    assert with_places(named) == named


def test_output_has_a_name_of_its_own_where_none_is_given() -> None:
    recipe = VitRecipe(data=DataConfig("org/set"), adapter=AdapterConfig("moslora"), seed=3)
    assert with_places(recipe).output == "runs/org-set-moslora-seed3"
    assert with_places(replace(recipe, output="mine")).output == "mine"
