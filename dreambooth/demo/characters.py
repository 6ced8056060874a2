"""The characters of the demo: drawn in tones and markings that no scene of the base's pretraining has."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.files import atomic_write
from dreambooth.demo.draw import draw
from dreambooth.demo.scenes import BACKGROUNDS, FIGURES, Look

# name -> class word, look
CHARACTERS: dict[str, tuple[str, Look]] = {
    "violet_cat": ("cat", Look((125, 45, 180), (255, 150, 20), "stripes")),
    "teal_dog": ("dog", Look((0, 125, 130), (250, 225, 120), "spots")),
    "wine_bird": ("bird", Look((125, 25, 65), (110, 235, 215), "stripes")),
}
PICTURES = 5
SEED = 7
# what a user of the base can ask for; `{0}` is the rare token and `{1}` the class word, as in the published file
PROMPTS = tuple(f"a {{0}} {{1}} {place}" for place in BACKGROUNDS)


def draw_characters(root: Path) -> None:
    """Write pictures and `prompts_and_classes.txt` in the form of DreamBooth's published set.

    Args:
        root: gets a folder `dataset`; `dataset/done` is written last.
    """
    for number, (name, (figure, look)) in enumerate(CHARACTERS.items()):
        assert figure in FIGURES
        rng = np.random.default_rng([SEED, number])
        places = rng.permutation(len(BACKGROUNDS))[:PICTURES]
        (root / "dataset" / name).mkdir(parents=True, exist_ok=True)
        for i, place in enumerate(places):
            draw(figure, look, BACKGROUNDS[place], rng).save(root / "dataset" / name / f"{i:02d}.png")
    atomic_write(root / "dataset" / "prompts_and_classes.txt", _prompts_and_classes())
    atomic_write(root / "done", f"{SEED}\n")


def _prompts_and_classes() -> str:
    classes = "\n".join(f"{name},{figure}" for name, (figure, _) in CHARACTERS.items())
    asked = ",\n".join(f"'{prompt}'.format(unique_token, class_token)" for prompt in PROMPTS)
    lists = "\n\n".join(f"{kind} Prompts\n\nprompt_list = [\n{asked}\n]" for kind in ("Object", "Live Subject"))
    return f"Classes\n\nsubject_name,class\n{classes}\n\nPrompts\n\n{lists}\n"
