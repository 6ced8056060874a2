"""The facts of the protocol. The hashes were computed from task_vectors' own lists (its templates.py,
gtsrb.py and eurosat.py), so a changed letter anywhere fails."""

import hashlib
import subprocess
import sys

import pytest

from vit_classify.data.registry import SETS, eurosat_words, gtsrb_words, plain_words, sun397_words


def digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("cars", 8, "255ecc632c41182c"),
        ("dtd", 8, "1f6888d2130f62a4"),
        ("eurosat", 3, "9bc85d9f1798d03b"),
        ("gtsrb", 3, "a6794061485dcfa2"),
        ("resisc45", 18, "8f390b8578e5c3bf"),
        ("sun397", 2, "c97a3d1ad5819800"),
        ("svhn", 1, "c0341e0a1fdfd8fb"),
    ],
)
def test_templates_are_the_protocols_to_the_letter(name: str, count: int, expected: str) -> None:
    templates = list(SETS[name].templates)
    assert len(templates) == count
    assert digest(templates) == expected


@pytest.mark.parametrize(
    ("name", "used", "test", "classes", "epochs"),
    [
        ("cars", 7330, 8041, 196, 35),
        ("dtd", 3384, 1880, 47, 76),
        ("eurosat", 21600, 2700, 10, 12),
        ("gtsrb", 23976, 12630, 43, 11),
        ("resisc45", 17010, 6300, 45, 15),
        ("sun397", 17865, 19850, 397, 14),
        ("svhn", 68257, 26032, 10, 4),
    ],
)
def test_hold_out_leaves_the_protocols_training_size(
    name: str, used: int, test: int, classes: int, epochs: int
) -> None:
    from vit_classify.data.splits import hold_out

    spec = SETS[name]
    kept, held = hold_out(spec.train_size, 0.1 if spec.holds_out else 0.0)
    assert (len(kept), spec.test_size, spec.classes, spec.epochs) == (used, test, classes, epochs)
    assert len(kept) + len(held) == spec.train_size


def test_gtsrb_class_ids_become_clips_words() -> None:
    words = gtsrb_words([f"{i:05}" for i in range(43)])
    assert digest(words) == "953036bc5aedbe6b"
    assert gtsrb_words([str(i) for i in sorted(range(43), key=str)])[2] == words[10]
    assert gtsrb_words(["no_entry", "stop"]) == ["no entry", "stop"]


def test_eurosat_folders_become_clips_words_in_any_spelling() -> None:
    folders = "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River"
    words = eurosat_words([*folders.split(), "SeaLake"])
    assert digest(words) == "ee2e41b9973e7206"
    assert eurosat_words(["Annual Crop", "sea_lake"]) == [words[0], words[9]]
    assert eurosat_words(words) == words  # a repository whose names are CLIP's already


def test_sun397_names_lose_their_initials_folder() -> None:
    assert sun397_words(["/a/abbey", "/a/apartment_building/outdoor"]) == ["abbey", "apartment building outdoor"]
    assert sun397_words(["a_abbey", "b_bar"]) == ["abbey", "bar"]
    assert sun397_words(["abbey", "b_bar"]) == ["abbey", "b bar"]  # only where every name has one


def test_underscores_become_spaces() -> None:
    assert plain_words(["baseball_diamond"]) == ["baseball diamond"]


def test_registry_imports_neither_torch_nor_datasets() -> None:
    # By its path: importing it as part of the package would import the package, which needs torch.
    code = (
        "import sys, importlib.util as u; s = u.spec_from_file_location('r', sys.argv[1])\n"
        "m = u.module_from_spec(s); sys.modules['r'] = m; s.loader.exec_module(m)\n"
        "sys.exit(bool({'torch', 'datasets'} & set(sys.modules)))"
    )
    import vit_classify.data.registry as registry

    assert subprocess.run([sys.executable, "-c", code, str(registry.__file__)], check=False).returncode == 0
