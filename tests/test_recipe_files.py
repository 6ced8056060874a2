"""Every recipe file that ships: it parses, explains itself, and each of its keys misspelt is an error."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from common import recipes
from common.errors import UserError
from dreambooth.config import DreamboothRecipe
from dreambooth.config import recipe_problems as dreambooth_problems
from llava.config import LlavaRecipe
from llava.config import recipe_problems as llava_problems
from vit_classify.config import VitRecipe
from vit_classify.config import recipe_problems as vit_problems

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(ROOT.glob("*/recipes/*.yaml"))


# pipeline: its recipe, its check, the files that ship
PIPELINES: dict[str, tuple[type, Callable[[Any], list[str]], set[str]]] = {
    "vit_classify": (VitRecipe, vit_problems, {"full", "lora", "moslora", "goat", "goat_plus", "tiny"}),
    "dreambooth": (DreamboothRecipe, dreambooth_problems, {"lora", "moslora", "goat", "tiny"}),
    "llava": (
        LlavaRecipe,
        llava_problems,
        {
            *("llama3_lora", "llama3_moslora", "llama3_goat", "vicuna_lora", "pretrain", "tiny"),
            *("internlm2_moslora", "internlm2_moslora_released"),
        },
    ),
}


def read(path: Path, pipeline: str) -> Any:
    recipe, problems, _ = PIPELINES[pipeline]
    return recipes.load(path, recipe, problems=problems)


def keys(content: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from keys(value, (*above, key))
        else:
            yield (*above, key)


def misspelt(content: dict[str, Any], key: tuple[str, ...]) -> dict[str, Any]:
    if len(key) == 1:
        return {f"{name}x" if name == key[0] else name: value for name, value in content.items()}
    return {**content, key[0]: misspelt(content[key[0]], key[1:])}


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_recipes_ship(pipeline: str) -> None:
    assert {path.stem for path in FILES if path.parts[-3] == pipeline} == PIPELINES[pipeline][2]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_recipe_parses_and_names_its_method(path: Path) -> None:
    recipe = read(path, path.parts[-3])
    if path.stem not in ("tiny", "pretrain"):
        assert recipe.adapter.method in path.stem


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_recipe_begins_with_what_command_needs_and_expectation(path: Path) -> None:
    head = path.read_text(encoding="utf-8").split("\nmodel:")[0]
    assert head.startswith("#")
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"--config {path.relative_to(ROOT)}" in head
    assert all(word in head for word in ("Command:", "Needs:", "Expect:"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_each_misspelt_key_is_an_error(path: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key in keys(content):
        wrong = tmp_path / "wrong.yaml"
        wrong.write_text(yaml.safe_dump(misspelt(content, key)), encoding="utf-8")
        with pytest.raises(UserError, match=f"{'.'.join(key)}x"):
            read(wrong, path.parts[-3])
