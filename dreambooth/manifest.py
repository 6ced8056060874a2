"""The manifest of a folder of generated pictures; imports no torch.

`mosgoat dreambooth generate --output DIR` writes `DIR/<adapter>/<subject>/<prompt>_<seed>.png` (such as `03_0.png`: the
fourth prompt, seed 0) and `DIR/<adapter>/<subject>/manifest.json`. A picture file holds pixels and nothing else: all
that is known of it stands in the manifest, which `mosgoat eval subjects` and `mosgoat eval study` read. So pictures of
any other tool can be measured too, once a manifest lies beside them:

    {
      "adapter": "moslora",                      # required: what made the pictures, as tables are to call it
      "subject": "dog6",                         # required
      "class_word": "dog",                       # required
      "token": "ikat",                           # required; the word that means the subject
      "prompts": ["a {token} {class} in the snow", ...],   # required; {token} and {class} are filled in
      "seeds": [0, 1, 2, 3],                     # required
      "references": ["/data/dog6/00.jpg", ...],  # pictures of the real subject; may be empty
      "settings": {"steps": 50, ...},            # how they were sampled; free
      "weights": "9f86d0...",                    # hash of all weights that made them; free
      "pictures": {"03_0.png": {"prompt": 3, "seed": 0, "made_by": "hash"}, ...}    # required: what is there
    }

Two pictures with the same subject, prompt, seed, size and model come from the same noise, whatever the adapter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import write_json
from common.reporting.runs import read_json
from dreambooth.config import fill_in

MANIFEST = "manifest.json"
_REQUIRED = {"adapter": str, "subject": str, "class_word": str, "token": str, "prompts": list, "seeds": list}


@dataclass(frozen=True)
class PictureEntry:
    """What is known of one picture file.

    Args:
        prompt: number of its prompt.
        seed: of its noise.
        made_by: hash of weights, prompt, seed and settings; a picture with another one is never taken for it.
    """

    prompt: int
    seed: int
    made_by: str = ""


@dataclass(frozen=True)
class Manifest:
    """The pictures that one adapter made of one subject; see the module for the file's form.

    Args:
        adapter: what made them; `base` for the model without an adapter.
        subject: whose pictures they are.
        class_word: what the subject is.
        token: the word that means the subject.
        prompts: templates, in which `{token}` and `{class}` stand for those words.
        seeds: one picture of every prompt for each.
        references: paths of pictures of the real subject.
        settings: how they were sampled.
        weights: hash of all weights that made them.
        pictures: name of each file that is there -> what it shows; fewer than prompts × seeds while some are missing.
    """

    adapter: str
    subject: str
    class_word: str
    token: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    references: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    pictures: Mapping[str, PictureEntry] = field(default_factory=dict)

    def prompt_text(self, index: int) -> str:
        """Prompt number `index` as the model was given it."""
        return fill_in(self.prompts[index], token=self.token, class_word=self.class_word)

    def class_text(self, index: int) -> str:
        """Prompt number `index` without the token: what the picture is to show, in words that everybody knows."""
        return without_token(self.prompts[index], self.token, self.class_word)

    def cells(self) -> list[tuple[int, int]]:
        """(prompt, seed) of every picture that is to be there."""
        return [(prompt, seed) for prompt in range(len(self.prompts)) for seed in self.seeds]

    def by_cell(self) -> dict[tuple[int, int], str]:
        """(prompt, seed) -> name of the file that is there."""
        return {(entry.prompt, entry.seed): name for name, entry in self.pictures.items()}


def picture_name(prompt: int, seed: int) -> str:
    """The file of a picture; it tells neither adapter nor subject."""
    return f"{prompt:02}_{seed}.png"


def without_token(template: str, token: str, class_word: str) -> str:
    """A prompt without the word that means the subject: `a {token} {class} in the snow` -> `a dog in the snow`.

    Args:
        template: with or without placeholders; a token that is written out is taken out as well.
        token: the word.
        class_word: what the subject is.
    """
    text = fill_in(template, token=token, class_word=class_word)
    return " ".join(re.sub(rf"(?<!\w){re.escape(token)}(?!\w)", " ", text).split())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` of a folder, atomically."""
    write_json(folder / MANIFEST, asdict(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json` of a folder of pictures.

    Raises:
        UserError: it is missing, broken, or lacks something; the message names the key.
    """
    file = folder / MANIFEST
    content = read_json(file)
    if not isinstance(content, dict):
        raise UserError(f"{file} is no manifest: it holds a {type(content).__name__}, not an object")
    for key, kind in _REQUIRED.items():
        if not isinstance(content.get(key), kind):
            raise UserError(f"{file}: {key}={content.get(key)!r} must be a {'text' if kind is str else 'list'}")
    if Path(content["subject"]).name != content["subject"] or content["subject"] in ("", ".", ".."):
        raise UserError(f"{file}: subject={content['subject']!r} must be a name, as of a folder")  # files are named so
    wrong = [value for value in content["prompts"] if not isinstance(value, str) or not value.strip()]
    wrong += [value for value in content["seeds"] if not isinstance(value, int) or isinstance(value, bool)]
    if wrong or not content["prompts"] or not content["seeds"]:
        raise UserError(f"{file}: prompts must be texts and seeds whole numbers, at least one of each; not {wrong}")
    references, settings = content.get("references", []), content.get("settings", {})
    if not isinstance(references, list) or not all(isinstance(path, str) for path in references):
        raise UserError(f"{file}: references={references!r} must be a list of paths")
    if not isinstance(settings, dict):
        raise UserError(f"{file}: settings={settings!r} must be an object")
    return Manifest(
        **{key: content[key] for key in ("adapter", "subject", "class_word", "token")},
        prompts=tuple(content["prompts"]),
        seeds=tuple(content["seeds"]),
        references=tuple(references),
        settings=settings,
        weights=str(content.get("weights", "")),
        pictures=_pictures(file, content),
    )


def _pictures(file: Path, content: Mapping[str, Any]) -> dict[str, PictureEntry]:
    pictures = content.get("pictures")
    if not isinstance(pictures, dict):
        raise UserError(f"{file}: pictures={pictures!r} must be an object, file name -> prompt and seed")
    found: dict[str, PictureEntry] = {}
    prompts, seeds = range(len(content["prompts"])), content["seeds"]
    for name, entry in pictures.items():
        if Path(name).name != name or name in (".", "..") or "\0" in name:  # no path from a file leaves its folder
            raise UserError(f"{file}: the picture {name!r} must be the name of a file beside the manifest")
        prompt, seed = (entry.get(key) if isinstance(entry, dict) else None for key in ("prompt", "seed"))
        if not isinstance(prompt, int) or not isinstance(seed, int) or prompt not in prompts or seed not in seeds:
            raise UserError(f"{file}: the picture {name}: prompt={prompt!r} or seed={seed!r} is none of the manifest's")
        found[name] = PictureEntry(prompt, seed, str(entry.get("made_by", "")))
    cells = [(entry.prompt, entry.seed) for entry in found.values()]
    if len(set(cells)) < len(cells):
        raise UserError(f"{file}: two pictures have the same prompt and seed; leave one out")
    return found


def find_manifests(root: Path) -> list[Path]:
    """The folders in `root` that hold a manifest: itself, its children or theirs; sorted by name.

    Raises:
        UserError: there is none.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; give the one that `mosgoat dreambooth generate --output` named")
    found = [folder for folder in _down_to(root, 2) if (folder / MANIFEST).is_file()]
    if not found:
        raise UserError(
            f"{root} holds no generated pictures: there is no {MANIFEST} in it, in its folders or in theirs; give the "
            "folder that `mosgoat dreambooth generate --output` named"
        )
    return found


def _down_to(folder: Path, depth: int) -> Iterator[Path]:
    yield folder
    if depth:
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from _down_to(child, depth - 1)
