"""Reading recipes: precedence, types, and errors that name key, value and what is allowed."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from common.recipes import describe_type, leaves, load, parse
from vit_classify.config import VitRecipe, recipe_problems


def read(*argv: str) -> VitRecipe:
    return parse(list(argv), VitRecipe, prog="mosgoat vit train", problems=recipe_problems)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_nothing_given_is_the_defaults() -> None:
    assert read() == VitRecipe()


def test_command_line_beats_yaml_beats_default_in_any_order(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "adapter: {r: 4, dropout: 0.5}\n")
    for argv in (["--config", file, "--adapter.r", "16"], ["--adapter.r", "16", "--config", file]):
        recipe = read(*argv)
        assert (recipe.adapter.r, recipe.adapter.dropout, recipe.adapter.method) == (16, 0.5, "lora")


def test_later_file_beats_earlier(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "adapter: {r: 4, dropout: 0.5}\n")
    second = write(tmp_path / "b.yaml", "adapter: {r: 2}\n")
    recipe = read(f"--config={first}", "--config", second)
    assert (recipe.adapter.r, recipe.adapter.dropout) == (2, 0.5)


def test_all_unknown_keys_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "adapter:\n  rnak: 3\ntrain:\n  lerning_rate: 1\nfoo: 1\n")
    with pytest.raises(UserError) as error:
        read("--config", file)
    text = str(error.value)
    assert "3 problems" in text
    assert "adapter.rnak=3" in text
    assert "did you mean train.learning_rate" in text
    assert "foo=1" in text


def test_help_offers_only_options_that_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help")
    offered = set(re.findall(r"^ +(--[\w.]+)", capsys.readouterr().out, flags=re.MULTILINE))
    assert offered == {f"--{key}" for key, _ in leaves(VitRecipe)} | {"--config", "--print_config"}


def test_plus_adds_to_a_list_and_to_nothing_else(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "adapter: {target_modules: [q_proj]}\n")
    assert read("--config", file, "--adapter.target_modules+", "v_proj").adapter.target_modules == ["q_proj", "v_proj"]
    with pytest.raises(UserError, match="seed"):
        read("--seed+", "3")


def test_unknown_option_suggests_the_near_one() -> None:
    with pytest.raises(UserError, match=r"--data\.nam; did you mean data\.name"):
        read("--data.nam", "dtd")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--adapter.r", "x"], ["adapter.r=x", "expected int"]),
        (["--adapter.method", "gaot"], ["adapter.method=gaot", "one of", "goat"]),
        (["--train.epochs", "many"], ["train.epochs=many", "float or null"]),
        (["--adapter.scaling", "theori"], ["adapter.scaling=theori", "theory", "float"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
        (["stray"], ["stray"]),
    ],
)
def test_wrong_value_names_key_value_and_what_is_allowed(argv: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        read(*argv)
    text = str(error.value)
    assert all(word in text for word in words), text
    assert "\n" not in text


@pytest.mark.parametrize(
    "text", ["adapter: [\n", "- a\n- b\n", 'adapter: !!python/object/apply:os.system ["true"]\n', "\x00"]
)
def test_broken_or_unsafe_yaml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"a\.yaml"):
        read("--config", write(tmp_path / "a.yaml", text))


def test_impossible_values_are_all_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)adapter\.r=12.*train\.batch_size=0"):
        read("--adapter.method", "goat", "--adapter.r", "12", "--train.batch_size", "0")


def test_written_recipe_reads_back_equal(tmp_path: Path) -> None:
    recipe = read("--adapter.method", "goat", "--train.learning_rate", "1e-5", "--data.templates", '["a {}", "b {}"]')
    write(tmp_path / "config.yaml", yaml.safe_dump(asdict(recipe)))
    assert load(tmp_path / "config.yaml", VitRecipe, problems=recipe_problems) == recipe


def test_loading_from_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.yaml is missing"):
        load(tmp_path / "config.yaml", VitRecipe, problems=recipe_problems)


def test_print_config_is_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        read("--adapter.method", "goat", "--print_config")
    file = write(tmp_path / "printed.yaml", capsys.readouterr().out)
    assert read("--config", file) == read("--adapter.method", "goat")


def test_leaves_cover_the_dataclass() -> None:
    keys = dict(leaves(VitRecipe))
    assert {"adapter.r", "data.name", "model.head", "seed"} <= set(keys)
    flat = set()
    for section, value in asdict(VitRecipe()).items():
        flat |= {f"{section}.{key}" for key in value} if isinstance(value, dict) else {section}
    assert flat == set(keys)


def test_types_are_described_in_words() -> None:
    assert describe_type(dict(leaves(VitRecipe))["data.templates"]) == "a list of text or null"
    assert describe_type(bool) == "true or false"
