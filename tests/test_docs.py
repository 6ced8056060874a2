"""What the documents tell a reader to type or to open exists: commands, options, recipes, links, paths, figures."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from common import recipes
from common.cli import COMMANDS, find_command
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


def commands_of(path: Path) -> list[list[str]]:
    """Every command line in a page (blocks and inline code) or in a recipe's comments."""
    text = read(path)
    if path.suffix == ".yaml":
        lines = [words.split() for words in re.findall(r"^# Command: +(.*)$", text, flags=re.MULTILINE)]
        return lines + [code.split() for code in inline_code(text.replace("\n#", "\n")) if " " in code]
    return [*shell_lines(text), *(shlex.split(code) for code in inline_code(text) if re.match(r"\w+ ", code))]


def own_options(file: Path) -> set[str]:
    """The options that a script's parsers define, read from its source: importing it would import torch."""
    calls = (node for node in ast.walk(ast.parse(read(file))) if isinstance(node, ast.Call))
    named = (call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument")
    words = (word.value for call in named for word in call.args if isinstance(word, ast.Constant))
    return {str(word).removeprefix("--") for word in words}


def check(words: list[str]) -> None:
    """Raise if a command line names what is not there; commands of other projects are passed over."""
    program, rest = words[0], [word for word in words[1:] if word != "..."]
    if program in ("torchrun", "accelerate") and "common.cli" in rest:
        assert program != "torchrun" or words[words.index("-m") :][:3] == ["-m", "--", "common.cli"], words
        check_mosgoat(rest[rest.index("common.cli") + 1 :])
    elif program == "mosgoat":
        check_mosgoat(rest)
    elif program == "make":
        check_make(rest)
    elif program == "python" and rest[0] == "-m":
        check_script(Path(rest[1].replace(".", "/") + ".py"), rest[2:])
    elif program == "python":
        check_script(Path(rest[0]), rest[1:])
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in rest if word.startswith("tests")), words


def check_mosgoat(words: list[str]) -> None:
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


@pytest.mark.parametrize("page", [*PAGES, *RECIPES], ids=name_of)
def test_every_command_in_the_documents_exists_with_its_options(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in commands_of(page):
        check(words)


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
        "make dmeo",
        "make test PYTHONS=python3.12",
        "pytest tests/comon",
    ],
)
def test_a_wrong_command_would_be_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, UserError)):
        check(shlex.split(line))


def test_the_documents_show_every_command() -> None:
    told = "\n".join(read(page) for page in PAGES)
    groups = {"vit", "llava"}  # the README names the commands of a group one after the other
    for name in COMMANDS:
        assert f"mosgoat {name}" in told or (name.split()[0] in groups and f"`{name.split()[1]}`" in told), name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.split("#")[0]).is_file(), target


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


@pytest.mark.parametrize("page", ["docs/vit_classify.md", "docs/llava.md", "docs/dreambooth.md", "docs/evaluation.md"])
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
