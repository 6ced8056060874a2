"""What the documents tell a reader to type or to open exists: commands, options, recipes, links, paths, figures."""

import argparse
import ast
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from common import recipes
from common.cli import COMMANDS, find_command, load_command
from common.config import OPTIONS
from common.errors import UserError
from dreambooth.command_line import expand
from dreambooth.config import DreamboothRecipe
from dreambooth.config import recipe_problems as dreambooth_problems
from llava.config import DataConfig as LlavaData
from llava.config import LlavaRecipe
from llava.config import recipe_problems as llava_problems
from vit_classify.config import DataConfig, VitRecipe, recipe_problems

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "vit_classify/demo/README.md",
    ROOT / "benchmarks/RESULTS.md",
]
SCRIPTS = sorted((ROOT / "docs/slurm").glob("*.sbatch"))
RECIPES = sorted(ROOT.glob("*/recipes/*.yaml"))
KEYS = dict(recipes.leaves(VitRecipe))
LLAVA_KEYS = dict(recipes.leaves(LlavaRecipe))
DREAMBOOTH_KEYS = dict(recipes.leaves(DreamboothRecipe))
DATA_KEYS = {f"data.{field.name}" for field in fields(DataConfig)}
LLAVA_DATA_KEYS = {f"data.{field.name}" for field in fields(LlavaData)}
# What a command takes from the recipe's keys, beside the options of its own parser.
RECIPE_OPTIONS = {
    "vit train": {*KEYS, "config", "print_config"},
    "vit sweep": {*KEYS, "config", "print_config"},
    "vit prepare": {*DATA_KEYS, "config", "verify", "print_config"},
    "vit evaluate": DATA_KEYS,
    "eval images": DATA_KEYS,
    "llava train": {*LLAVA_KEYS, "config", "print_config"},
    "dreambooth train": {*DREAMBOOTH_KEYS, "config", "print_config", "subject", "class-word", "subjects"},
    "llava check-data": {*LLAVA_DATA_KEYS, "model.name", "model.language_model", "config"},
}
# Where a command's module takes a part of its options from.
SHARED_OPTIONS = {
    "llava chat": ["llava/model_open.py"],
    "llava predict": ["llava/model_open.py"],
    "eval mmbench": ["llava/model_open.py", "eval/vlm/judge.py"],
    "eval vlm": ["llava/model_open.py", "eval/vlm/judge.py"],
    "eval score": ["eval/vlm/judge.py"],
    "dreambooth generate": ["dreambooth/generate_command.py"],
}
# Programs of others that a page may tell a reader to run; anything else in a bash block has to be one that is checked.
OTHERS = {"caddy", "curl", "export", "git", "hf", "mypy", "pip", "ruff", "source", "ssh", "unzip"}
FOLDERS = "common|vit_classify|eval|benchmarks|docs|tests|llava|dreambooth"
NAMED_PATH = re.compile(rf"(?<![\w/.-])(?:(?:{FOLDERS})/[\w./*-]*\w/?|\.ci/run|\w+\.(?:toml|txt)\b)")
NAMED_KEY = re.compile(
    r"(?<![\w/.])(?:--)?((?:model|data|adapter|train)\.(?!py\b|json\b|safetensors\b)[a-z][a-z_0-9]*)(?![\w./(])"
)
OF_THE_READER = {"prompts_and_classes.txt", "prompts.txt", "01.txt"}  # files that lie beside the reader's pictures
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b")  # RUN, DIR, ...: the reader's to fill in


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def shell_lines(text: str) -> Iterator[list[str]]:
    """The words of each command in a page's bash blocks, continuation lines joined, comments left out."""
    for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split(" && "):
                words = shlex.split(part, comments=True)
                if words:
                    yield words


def inline_code(text: str) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def commands_of(path: Path) -> list[tuple[list[str], bool]]:
    """The words of every command in a page, a script or a recipe, and whether it is a whole one and not a mention.

    Whole are those of a page's bash blocks, and those behind `Command:` in a comment.
    """
    text = read(path)
    if path.suffix == ".sbatch":
        return [(line.split(), True) for line in re.findall(r"^# .*?(sbatch .*\.sbatch .*)$", text, flags=re.MULTILINE)]
    if path.suffix == ".yaml":
        whole = [words.split() for words in re.findall(r"^# Command: +(.*)$", text, flags=re.MULTILINE)]
        mentions = [code.split() for code in inline_code(text.replace("\n#", "\n")) if " " in code]
    else:
        whole = list(shell_lines(text))
        mentions = [shlex.split(code) for code in inline_code(text) if re.match(r"\w+ ", code)]
    return [*((words, True) for words in whole), *((words, False) for words in mentions)]


def own_options(file: Path) -> set[str]:
    """The options that a script's parsers define, read from its source: importing it would import torch."""
    calls = (node for node in ast.walk(ast.parse(read(file))) if isinstance(node, ast.Call))
    named = (call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument")
    words = (word.value for call in named for word in call.args if isinstance(word, ast.Constant))
    return {str(word).removeprefix("--") for word in words}


def check(words: list[str], whole: bool = False) -> None:
    """Raise if a command line names what is not there; of other projects' commands only the name is looked at.

    Args:
        words: of the command.
        whole: whether it is a whole command, which its own parser has to take, and not a mention of one.
    """
    program, rest = words[0], [word for word in words[1:] if word != "..."]
    if program == "sbatch":
        at = next(at for at, word in enumerate(rest) if word.endswith(".sbatch"))
        assert ROOT / rest[at] in SCRIPTS, words
        assert "--output" in rest[at + 1 :], words
        check_mosgoat(rest[at + 1 :], whole)
    elif program in ("torchrun", "accelerate") and "common.cli" in rest:
        assert program != "torchrun" or words[words.index("-m") :][:3] == ["-m", "--", "common.cli"], words
        check_mosgoat(rest[rest.index("common.cli") + 1 :], whole)
    elif program == "mosgoat":
        check_mosgoat(rest, whole)
    elif program == "make":
        check_make(rest)
    elif program == "python" and rest[0] == "-m":
        check_script(Path(rest[1].replace(".", "/") + ".py"), rest[2:])
    elif program == "python":
        check_script(Path(rest[0]), rest[1:])
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in rest if word.startswith("tests")), words
    else:
        assert not whole or program in OTHERS, words


class Parsed(Exception):
    """A command's own parser has taken a command line."""


def parse_only(name: str, words: list[str]) -> None:
    """Hand a command line to the command's own parser, and run nothing behind it."""

    def stopping(original: Any) -> Any:
        def parse(self: argparse.ArgumentParser, *args: Any, **settings: Any) -> None:
            original(self, *args, **settings)
            raise Parsed

        return parse

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stopping(argparse.ArgumentParser.parse_args))
        try:
            load_command(name)(words)
        except Parsed:
            return
        except SystemExit as error:
            raise AssertionError(f"mosgoat {name} {shlex.join(words)}: its parser ends with status {error}") from None
    raise AssertionError(f"mosgoat {name} has parsed nothing")


def check_mosgoat(words: list[str], whole: bool = False) -> None:
    groups = {name.split()[0] for name in COMMANDS}
    if words in (["--help"], *([group] for group in groups)):
        return
    name, rest = find_command(words)
    module = COMMANDS[name][0].split(":")[0]
    allowed = own_options(ROOT / f"{module.replace('.', '/')}.py") | RECIPE_OPTIONS.get(name, set()) | {"help"}
    for file in SHARED_OPTIONS.get(name, []):
        allowed |= own_options(ROOT / file)
    unknown = {word.split("=")[0] for word in rest if word.startswith("--")} - {f"--{key}" for key in allowed}
    assert not unknown, f"mosgoat {name} has no option {sorted(unknown)}"
    for option, known in (("--methods", set(OPTIONS)), ("--datasets", None)):
        if name != "demo" and option in rest:
            given = rest.pop(at := rest.index(option) + 1)
            rest.pop(at - 1)
            assert known is None or set(given.split(",")) <= known, given
    if whole and name not in RECIPE_OPTIONS and "--help" not in rest:
        parse_only(name, rest)
    rest = [word for word in rest if word not in ("--verify", "--print_config")]
    if "--help" in rest or any(map(PLACEHOLDER.search, rest)):
        return
    if name in ("vit train", "vit sweep", "vit prepare"):
        recipes.parse(rest, VitRecipe, prog="mosgoat", problems=recipe_problems)
    elif name == "llava train" and rest:
        recipes.parse(rest, LlavaRecipe, prog="mosgoat", problems=llava_problems)
    elif name == "dreambooth train" and rest:
        recipes.parse(expand(rest)[0], DreamboothRecipe, prog="mosgoat", problems=dreambooth_problems)


def check_make(words: list[str]) -> None:
    text = read(ROOT / "Makefile")
    for word in words:
        variable, is_variable, _ = word.partition("=")
        known = f"$({variable})" in text if is_variable else re.search(rf"^{word}:", text, flags=re.MULTILINE)
        assert known, f"the Makefile has no {word}"


def check_script(file: Path, words: list[str]) -> None:
    assert (ROOT / file).is_file(), file
    unknown = {word for word in words if word.startswith("--")} - {"--help"}
    assert unknown <= {f"--{option}" for option in own_options(ROOT / file)}, (file, unknown)


@pytest.mark.parametrize("page", [*PAGES, *RECIPES, *SCRIPTS], ids=name_of)
def test_every_command_in_the_documents_exists_with_its_options(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words, whole in commands_of(page):
        check(words, whole)


@pytest.mark.parametrize(
    "line",
    [
        "mosgoat vit trian",
        "mosgoat vit train --train.leraning_rate 1",
        "mosgoat vit train --config vit_classify/recipes/gaot.yaml",
        "mosgoat vit train --config vit_classify/recipes/goat.yaml --adapter.r 7",
        "mosgoat vit sweep --config vit_classify/recipes/lora.yaml --methods lora,gaot --output x",
        "mosgoat vit prepare --data.name dtd --train.epochs 3",
        "mosgoat eval images --run x --batch_size 3",
        "mosgoat llava train --config llava/recipes/llama3_mosolra.yaml",
        "mosgoat llava train --config llava/recipes/tiny.yaml --data.batching grouped",
        "mosgoat llava train --config llava/recipes/tiny.yaml --model.vision_towr x",
        "mosgoat llava check-data --data.path x --train.epochs 1",
        "mosgoat dreambooth train --config dreambooth/recipes/mosolra.yaml",
        "mosgoat dreambooth train --config dreambooth/recipes/moslora.yaml --classword dog",
        "mosgoat dreambooth generate --run x --seed 3",
        "mosgoat llava chat --run x --picture y",
        "mosgoat llava predict --run x --batchsize 3",
        "mosgoat eval mmbench --run x --benchmrak MMBench_DEV_EN",
        "mosgoat eval score --benchmark MME --predictions x --judge-modle y",
        "torchrun --nproc-per-node 4 -m common.cli vit train ...",
        "torchrun --nproc-per-node 4 -m -- common.cli vit train --seeds 3",
        "python -m vit_classify.demo.darw --output x",
        "python benchmarks/vit.py --imagse x",
        "mosgoat params --model llama-3-8b --method lora --memory --gpus four",
        "mosgoat params --model llama-3-8b --method lora stray",
        "mosgoat export --run x --to loar --output y",
        "mosgoat eval score --benchmark MME --predictions x",
        "sbatch docs/slurm/trian.sbatch vit train --output x",
        "sbatch docs/slurm/train.sbatch vit train --config vit_classify/recipes/goat.yaml",
        "sbatch docs/slurm/train.sbatch vit trian --output x",
        "accelerate launch -m common.cli vit trian",
        "mosgaot vit train",
        "make dmeo",
        "make test PYTHONS=python3.12",
        "pytest tests/comon",
    ],
)
def test_a_wrong_command_would_be_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, UserError, StopIteration)):
        check(shlex.split(line), whole=True)


def test_the_documents_show_every_command() -> None:
    told = "\n".join(read(page) for page in PAGES)
    groups = {"vit", "llava"}  # the README names the commands of a group one after the other
    for name in COMMANDS:
        assert f"mosgoat {name}" in told or (name.split()[0] in groups and f"`{name.split()[1]}`" in told), name


def anchors(page: Path) -> set[str]:
    """What a link may name behind `#`: the headings, as GitHub writes them there."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", read(page), flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if not target.startswith(("http://", "https://")):
            name, _, anchor = target.partition("#")
            file = page.parent / name if name else page
            assert file.is_file(), target
            assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", [*PAGES, *RECIPES], ids=name_of)
def test_every_named_path_of_the_repository_exists(page: Path) -> None:
    for path in NAMED_PATH.findall(read(page)):
        assert path in OF_THE_READER or any(ROOT.glob(path.rstrip("/"))), path


@pytest.mark.parametrize("page", [*PAGES, *RECIPES], ids=name_of)
def test_every_named_key_of_a_recipe_exists(page: Path) -> None:
    spoken = " ".join(inline_code(read(page)))
    known = {"vit_classify": KEYS, "llava": LLAVA_KEYS, "dreambooth": DREAMBOOTH_KEYS}
    folder = page.stem if page.parent.name == "docs" else name_of(page).split("/")[0]
    keys = known.get(folder) or KEYS | LLAVA_KEYS | DREAMBOOTH_KEYS
    assert set(NAMED_KEY.findall(spoken)) <= set(keys)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_examples_import_public_names(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", read(page), flags=re.DOTALL | re.MULTILINE):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("common"):
                package = read(ROOT / node.module.replace(".", "/") / "__init__.py")
                assert all(f'"{alias.name}"' in package for alias in node.names), ast.unparse(node)


def demo_figures(text: str) -> dict[str, list[str]]:
    """Method → the accuracies and differences of a page's table of the demo."""
    rows = re.findall(r"^\| (linear probe|LoRA|MoSLoRA|GOAT) \|(.* ± .*)$", text, flags=re.MULTILINE)
    return {name: re.findall(r"[+−]?\d+\.\d", cells) for name, cells in rows}


def test_figures_of_the_demo_agree_wherever_they_are_told() -> None:
    told = demo_figures(read(ROOT / "vit_classify/demo/README.md"))
    assert demo_figures(read(ROOT / "README.md")) == told
    assert set(told) == {"linear probe", "LoRA", "MoSLoRA", "GOAT"}
    tiny = read(ROOT / "vit_classify/recipes/tiny.yaml")
    assert f"{' ± '.join(told['GOAT'][:2])} over three seeds" in tiny
    assert f"({' ± '.join(told['linear probe'][:2])})" in tiny


def test_published_figures_in_recipes_are_those_of_the_table() -> None:
    table = json.loads(read(ROOT / "common/reporting/published/goat_table1.json"))
    names = [column["name"] for column in table["columns"]]
    values = {row["name"]: row["values"] for row in table["rows"]}
    for method, row in (("full", "Full FT"), ("lora", "LoRA"), ("goat", "GOAT")):
        expected = ", ".join(f"{name} {value:.2f}" for name, value in zip(names, values[row], strict=True))
        assert f"top-1 of [G]: {expected}." in read(ROOT / f"vit_classify/recipes/{method}.yaml"), method


def spoken_texts() -> list[str]:
    """Every text in the sources, f-strings with their gaps as one space."""
    found = []
    for folder in ("common", "vit_classify", "llava", "dreambooth", "eval"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(read(file))):
                if isinstance(node, ast.JoinedStr):
                    parts = (str(part.value) if isinstance(part, ast.Constant) else " " for part in node.values)
                    found.append(" ".join("".join(parts).split()))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(" ".join(node.value.split()))
    return found


MESSAGES = ("docs/vit_classify.md", "docs/llava.md", "docs/dreambooth.md", "docs/evaluation.md", "docs/scaling.md")


@pytest.mark.parametrize("page", MESSAGES)
def test_messages_in_the_documents_are_said_by_the_code(page: str) -> None:
    table = read(ROOT / page).split("## Messages and what to do")[1].split("##")[0]
    messages = re.findall(r"^\| `([^|]+)` \|", table, flags=re.MULTILINE)
    texts = spoken_texts()
    for message in messages:
        # Dots, capitals, numbers and quoted words stand for what differs from case to case.
        for piece in re.split(
            r"\.\.\.|\b[A-Z]+\b(?!-)|=?\b\d+|'\w+'|\bdtd\b|\b(?:pictures|conversations)(?= have)", message
        ):
            piece = piece.strip(" :;,")
            assert any(piece in text for text in texts), (message, piece)
    assert len(messages) >= 8


PIPELINES = {"vit_classify": KEYS, "llava": LLAVA_KEYS, "dreambooth": DREAMBOOTH_KEYS}
# Explained once, with the methods in docs/adapters.md, and not in the page of each pipeline.
OF_SINGLE_METHODS = {f"adapter.{key}" for key in frozenset.union(*OPTIONS.values())} - {
    "adapter.alpha",
    "adapter.dropout",
    "adapter.target_modules",
}


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_key_of_a_recipe_is_explained_in_its_page(pipeline: str) -> None:
    shared = set.intersection(*map(set, PIPELINES.values())) - DATA_KEYS
    words = {
        page: set(re.findall(r"[\w.]+", " ".join(inline_code(read(ROOT / f"docs/{page}.md")))))
        for page in (pipeline, "training")
    }
    own = set(PIPELINES[pipeline]) - OF_SINGLE_METHODS
    assert sorted(key for key in own - shared if key not in words[pipeline]) == []
    assert sorted(key for key in own & shared if key not in words[pipeline] | words["training"]) == []


def test_every_setting_of_a_single_method_is_explained_with_the_methods() -> None:
    words = set(re.findall(r"\w+", " ".join(inline_code(read(ROOT / "docs/adapters.md")))))
    assert sorted(key for key in OF_SINGLE_METHODS if key.removeprefix("adapter.") not in words) == []
