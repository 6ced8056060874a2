"""The rules of the house that a reader could break without noticing."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PIPELINES = {"vit_classify", "llava", "dreambooth"}
FOLDERS = ["common", "vit_classify", "llava", "dreambooth", "eval"]

# folder: the folders of ours that it may import; `eval` may use the pipelines, nothing may use `eval`.
ALLOWED = {
    "common": {"common"},
    **{name: {"common", name} for name in PIPELINES},
    "eval": {"common", "eval", *PIPELINES},
}


def sources() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""


def top_level_imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {name.split(".")[0] for node in tree.body for name in imports(node)}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_who_may_import_whom(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    used = {name.split(".")[0] for name in imports(ast.parse(path.read_text(encoding="utf-8")))}
    assert used & set(FOLDERS) <= ALLOWED[folder]


@pytest.mark.parametrize(
    "path", [p for p in sources() if p.name == "config.py" and p.parent.name != "adapters"], ids=str
)
def test_config_imports_no_torch(path: Path) -> None:
    assert not top_level_imports(path) & {"torch", "transformers", "peft", "open_clip", "numpy"}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, "cut the file along a seam (aim: 350 lines)"


def test_nothing_unpickles_or_runs_remote_code() -> None:
    for path in sources():
        text = path.read_text(encoding="utf-8")
        assert "trust_remote_code=True" not in text, path
        assert not re.search(r"\bpickle\.loads?\(|yaml\.load\(|weights_only=False", text), path


def test_no_path_of_a_machine_or_index_host_is_committed() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"""["'= (](/(work|farm|root)/)|files\.pythonhosted|--(extra-)?index-url""")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".toml", ".txt", ".yaml", ".md", ""} and path.is_file() and path != Path(__file__):
            found = pattern.search(path.read_text(encoding="utf-8", errors="replace"))
            assert found is None, f"{name}: {found}"
