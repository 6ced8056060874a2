"""The seven sets of the paper's protocol: where they are, their sizes, prompts and class names.

Splits and names are those of task arithmetic (Ilharco et al. 2023), epochs those of Fan et al. 2025, Table 10;
the prompt templates and the words for EuroSAT and GTSRB are CLIP's published ones (Radford et al. 2021).
Imports neither torch nor datasets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_NOUNS = ("texture", "pattern", "thing", "object")
_VIEWS = tuple(f"{kind} {view} of" for view in ("imagery", "photo", "view") for kind in ("satellite", "aerial"))

# CLIP's words for EuroSAT, by the folder name's letters in lower case.
_EUROSAT = {
    "annualcrop": "annual crop land",
    "forest": "forest",
    "herbaceousvegetation": "brushland or shrubland",
    "highway": "highway or road",
    "industrial": "industrial buildings or commercial buildings",
    "pasture": "pasture land",
    "permanentcrop": "permanent crop land",
    "residential": "residential buildings or homes or apartments",
    "river": "river",
    "sealake": "lake or sea",
}

_RING = "red and white circle"
_TRIANGLE = "red and white triangle"
_BLUE = "blue circle with white"

# CLIP's words for GTSRB, by class id. "horizonal" and "bicyle" are misspelt there; the text encoder's features,
# and so the published zero-shot accuracies, belong to exactly these strings.
_GTSRB = (
    *(f"{_RING} {speed} kph speed limit" for speed in (20, 30, 50, 60, 70, 80)),
    "end / de-restriction of 80 kph speed limit",
    *(f"{_RING} {speed} kph speed limit" for speed in (100, 120)),
    f"{_RING} red car and black car no passing",
    f"{_RING} red truck and black car no passing",
    f"{_TRIANGLE} road intersection warning",
    "white and yellow diamond priority road",
    "red and white upside down triangle yield right-of-way",
    "stop",
    "empty red and white circle",
    f"{_RING} no truck entry",
    "red circle with white horizonal stripe no entry",
    f"{_TRIANGLE} with exclamation mark warning",
    *(f"{_TRIANGLE} with black {turn} curve approaching warning" for turn in ("left", "right", "double")),
    f"{_TRIANGLE} rough / bumpy road warning",
    f"{_TRIANGLE} car skidding / slipping warning",
    f"{_TRIANGLE} with merging / narrow lanes warning",
    f"{_TRIANGLE} with person digging / construction / road work warning",
    f"{_TRIANGLE} with traffic light approaching warning",
    f"{_TRIANGLE} with person walking warning",
    f"{_TRIANGLE} with child and person walking warning",
    f"{_TRIANGLE} with bicyle warning",
    f"{_TRIANGLE} with snowflake / ice warning",
    f"{_TRIANGLE} with deer warning",
    "white circle with gray strike bar no speed limit",
    f"{_BLUE} right turn arrow mandatory",
    f"{_BLUE} left turn arrow mandatory",
    f"{_BLUE} forward arrow mandatory",
    f"{_BLUE} forward or right turn arrow mandatory",
    f"{_BLUE} forward or left turn arrow mandatory",
    f"{_BLUE} keep right arrow mandatory",
    f"{_BLUE} keep left arrow mandatory",
    f"{_BLUE} arrows indicating a traffic circle",
    "white circle with gray strike bar indicating no passing for cars has ended",
    "white circle with gray strike bar indicating no passing for trucks has ended",
)


def plain_words(names: Sequence[str]) -> list[str]:
    """Names as words: underscores become spaces."""
    return [name.replace("_", " ").strip() for name in names]


def eurosat_words(names: Sequence[str]) -> list[str]:
    """CLIP's words for EuroSAT's folder names, however they are written; other names stay as they are."""
    return [_EUROSAT.get(re.sub("[^a-z]", "", name.lower()), name.replace("_", " ")) for name in names]


def gtsrb_words(names: Sequence[str]) -> list[str]:
    """CLIP's words for GTSRB where the names are class ids (`00014`, `14`); other names stay words."""
    if all(name.isdecimal() for name in names) and {int(name) for name in names} == set(range(len(_GTSRB))):
        return [_GTSRB[int(name)] for name in names]
    return plain_words(names)


def sun397_words(names: Sequence[str]) -> list[str]:
    """SUN397's names without the initial's folder (`/a/abbey`, `a_abbey`), underscores and slashes as spaces."""
    initial = re.compile(r"/?([a-z])[/_](?=\1)")  # the scene begins with the letter of its folder
    if all(initial.match(name) for name in names):
        names = [initial.sub("", name, count=1) for name in names]
    return plain_words([name.replace("/", " ") for name in names])


@dataclass(frozen=True)
class SetSpec:
    """What the protocol fixes about one set.

    Args:
        hub_id: dataset repository on the Hub.
        hub_config: its configuration, where it has several.
        train_size: pictures of the train split as published, before a validation part is held out.
        test_size: pictures of the test split.
        classes: number of classes.
        epochs: passes over the training part at batch size 512 (Fan et al. 2025, Table 10).
        templates: prompts with `{}` for the class.
        holds_out: whether the validation part is taken out of train. EuroSAT's validation pictures are a third
            part of the set, so all of its train split is trained on.
        words: turns the names of the classes (features or folders) into the words of the prompts.
    """

    hub_id: str
    train_size: int
    test_size: int
    classes: int
    epochs: int
    templates: tuple[str, ...]
    hub_config: str | None = None
    holds_out: bool = True
    words: Callable[[Sequence[str]], list[str]] = plain_words


SETS: dict[str, SetSpec] = {
    "cars": SetSpec(
        "tanganke/stanford_cars",
        8144,
        8041,
        classes=196,
        epochs=35,
        templates=(
            "a photo of a {}.",
            "a photo of the {}.",
            "a photo of my {}.",
            "i love my {}!",
            *(f"a photo of my {state} {{}}." for state in ("dirty", "clean", "new", "old")),
        ),
    ),
    "dtd": SetSpec(
        "tanganke/dtd",
        3760,
        1880,
        classes=47,
        epochs=76,
        templates=tuple(f"a photo of {article} {{}} {noun}." for article in ("a", "the") for noun in _NOUNS),
    ),
    "eurosat": SetSpec(
        "tanganke/eurosat",
        21600,
        2700,
        classes=10,
        epochs=12,
        templates=tuple(f"a centered satellite photo of {article}{{}}." for article in ("", "a ", "the ")),
        holds_out=False,
        words=eurosat_words,
    ),
    "gtsrb": SetSpec(
        "tanganke/gtsrb",
        26640,
        12630,
        classes=43,
        epochs=11,
        templates=tuple(f'a {view} photo of a "{{}}" traffic sign.' for view in ("zoomed in", "centered", "close up")),
        words=gtsrb_words,
    ),
    "resisc45": SetSpec(
        "tanganke/resisc45",
        18900,
        6300,
        classes=45,
        epochs=15,
        templates=tuple(f"{view} {article}{{}}." for article in ("", "a ", "the ") for view in _VIEWS),
    ),
    "sun397": SetSpec(
        "tanganke/sun397",
        19850,
        19850,
        classes=397,
        epochs=14,
        templates=("a photo of a {}.", "a photo of the {}."),
        words=sun397_words,
    ),
    "svhn": SetSpec(
        "ufldl-stanford/svhn",
        73257,
        26032,
        classes=10,
        epochs=4,
        templates=('a photo of the number: "{}".',),
        hub_config="cropped_digits",
    ),
}

# For a set of the user's own that gives no templates.
DEFAULT_TEMPLATES = ("a photo of a {}.",)
