"""Small studies: generated pictures in both forms of folders, and what a rater's browser does."""

from __future__ import annotations

import re
from pathlib import Path
from zlib import crc32

import numpy as np
from PIL import Image, PngImagePlugin
from starlette.testclient import TestClient

from dreambooth.manifest import Manifest, PictureEntry, picture_name, write_manifest
from eval.study import inviting
from eval.study.app import create_app
from eval.study.database import Study, open_study
from eval.study.importing import Report, import_study
from eval.study.security import Hosting

PROMPTS = (
    "a {token} {class} in the snow",
    "a {token} {class} on a red chair",
    "a {token} {class} with a city behind it",
)
# As long as a method's name may be, and nothing that a page says by itself.
METHODS = ("MoSLoRA-secret", "LoRA-veiled")


def draw(path: Path, seed: int, size: int = 48, text: str = "") -> None:
    """A picture with a coloured disc on noise; `text` is metadata that an honest copy must not keep."""
    dice = np.random.default_rng(seed)
    pixels = dice.integers(0, 60, (size, size, 3), dtype=np.uint8) + dice.integers(0, 120, 3, dtype=np.uint8)
    y, x = np.mgrid[:size, :size] / size - 0.5
    pixels[x * x + y * y < 0.1] = dice.integers(60, 255, 3, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    note = PngImagePlugin.PngInfo()
    note.add_text("method", text or "nothing")
    Image.fromarray(pixels).save(path, pnginfo=note)


def generated(
    root: Path, adapter: str, subjects: tuple[str, ...] = ("dog6",), seeds: tuple[int, ...] = (0, 1), size: int = 48
) -> Path:
    """A folder as `mosgoat dreambooth generate` writes it for one adapter, with references."""
    for subject in subjects:
        folder, names = root / adapter / subject, {}
        for prompt in range(len(PROMPTS)):
            for seed in seeds:
                name = picture_name(prompt, seed)
                draw(folder / name, crc32(f"{adapter} {subject} {prompt} {seed}".encode()), size, adapter)
                names[name] = PictureEntry(prompt, seed)
        references = [root / "real" / subject / f"{number:02}.png" for number in range(3)]
        for number, reference in enumerate(references):
            draw(reference, number, size)
        real = tuple(str(path) for path in references)
        manifest = Manifest(adapter, subject, "dog", "ikat", PROMPTS, seeds, real, {"steps": 50}, pictures=names)
        write_manifest(folder, manifest)
    return root / adapter


def make_study(
    root: Path, methods: tuple[str, ...] = METHODS, subjects: tuple[str, ...] = ("dog6",), size: int = 48
) -> tuple[Study, Report]:
    """A study of some methods: 6 pairs for each subject and two methods."""
    sets = [(name, generated(root, f"adapter-{name}", subjects, size=size)) for name in methods]
    report = import_study(root / "study", sets, references=None, prompts=None, title="A small study")
    return open_study(root / "study"), report


def invite(study: Study, number: int = 1, pairs: int | None = None) -> list[str]:
    """Tokens of new raters."""
    with study.writing() as db:
        return [invitation.token for invitation in inviting.invite_raters(db, number, pairs)]


def organiser(study: Study) -> str:
    """Token of a new organiser."""
    with study.writing() as db:
        return inviting.invite_organiser(db).token


def client_of(study: Study, hosting: Hosting | None = None) -> TestClient:
    """A browser that does not follow redirects, at the address that a server has by default."""
    return TestClient(create_app(study, hosting), base_url="http://127.0.0.1:8000", follow_redirects=False)


def enter(study: Study, token: str, hosting: Hosting | None = None) -> TestClient:
    """A browser that has opened a personal link."""
    client = client_of(study, hosting)
    assert client.get(f"/enter/{token}").status_code == 303
    return client


def fields(page: str) -> dict[str, str]:
    """The hidden fields of a page's form."""
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))


def answer(client: TestClient, similarity: str = "left", consistency: str = "tie") -> int:
    """Answer the pair that the browser is shown; returns the status."""
    form = fields(client.get("/rate").text)
    return send(client, form, similarity, consistency)


def send(client: TestClient, form: dict[str, str], similarity: str = "left", consistency: str = "tie") -> int:
    """Send a form with answers; returns the status."""
    content = form | {"subject_similarity": similarity, "prompt_consistency": consistency}
    return client.post("/rate", data=content).status_code


def votes(study: Study) -> list[tuple[str, str]]:
    """(question, result) of all votes, in the order of raters and pairs."""
    with study.reading() as db:
        return [tuple(row) for row in db.execute("SELECT question, result FROM votes ORDER BY rater, pair, question")]
