"""Class pictures: generated on demand, from their own seeds, once for all subjects of a class."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from dreambooth.config import PriorConfig, TrainConfig
from dreambooth.data import class_pictures, open_data, prior
from dreambooth.data.prior import ClassPictures
from dreambooth.model import SdxlBase
from tests.dreambooth.data.conftest import Recipe, drawn

Draw = Callable[..., ClassPictures]


class Painter:
    """Stands in for `generate`: notes what it is asked for, and paints the seed."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.jobs: list[tuple[str, int]] = []
        self.settings: set[tuple[int, float, int, int]] = set()
        self.stop_after = stop_after

    def __call__(
        self, base: SdxlBase, jobs: Sequence, *, steps: int, guidance: float, size: int, batch_size: int
    ) -> Iterator[Image.Image]:
        self.settings |= {(steps, guidance, size, batch_size)} if jobs else set()
        for job in jobs:
            if len(self.jobs) == self.stop_after:
                raise KeyboardInterrupt
            self.jobs.append((job.prompt, job.seed))
            yield Image.new("RGB", (size, size), (job.seed % 256, 50, 90))

    @property
    def seeds(self) -> list[int]:
        return [seed for _, seed in self.jobs]


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> Painter:
    painter = Painter()
    monkeypatch.setattr(prior, "generate", painter)
    return painter


@pytest.fixture
def draw(base: SdxlBase, tmp_path: Path) -> Draw:
    def run(class_word: str = "robot", resolution: int = 16, **changes: object) -> ClassPictures:
        settings = PriorConfig(**({"weight": 1.0, "pictures": 5, "steps": 3} | changes))  # type: ignore[arg-type]
        return class_pictures(base, class_word, settings, resolution=resolution, cache_dir=str(tmp_path / "cache"))

    return run


def names(found: ClassPictures) -> list[str]:
    return [picture.path.name for picture in found.pictures]


def test_missing_pictures_are_generated_each_from_its_own_seed(painter: Painter, draw: Draw) -> None:
    found = draw(guidance=4.0, batch_size=2)
    assert painter.jobs == [("a photo of robot", seed) for seed in range(5)]
    assert painter.settings == {(3, 4.0, 16, 2)}
    assert (len(found.pictures), found.generated) == (5, 5)
    for i, picture in enumerate(found.pictures):
        assert np.asarray(Image.open(picture.path))[0, 0].tolist() == [i, 50, 90]


def test_a_second_subject_of_the_class_shares_them(painter: Painter, draw: Draw) -> None:
    first, second = draw(), draw()
    assert names(first) == names(second)
    assert painter.seeds == [0, 1, 2, 3, 4]


def test_more_of_them_are_added_and_fewer_are_a_part(painter: Painter, draw: Draw) -> None:
    whole = draw()
    assert names(draw(pictures=3)) == names(whole)[:3]
    assert names(draw(pictures=7))[:5] == names(whole)
    assert painter.seeds == list(range(7))


def test_what_was_finished_before_an_interruption_is_kept(painter: Painter, draw: Draw) -> None:
    painter.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        draw()
    painter.stop_after = 100
    assert len(draw().pictures) == 5
    assert painter.seeds == [0, 1, 2, 3, 4]


def test_a_damaged_picture_is_generated_anew(painter: Painter, draw: Draw) -> None:
    damaged = draw().pictures[3].path
    damaged.write_bytes(damaged.read_bytes()[:50])
    found = draw()
    assert painter.seeds[5:] == [3]
    assert (len(found.pictures), found.findings.skipped) == (5, [])


def test_what_another_run_makes_meanwhile_is_not_taken_away(
    painter: Painter, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = prior.read_folder

    def then_another_run_is_done(folder: Path, key: str, **options: bool) -> object:
        found = listing(folder, key, **options)
        monkeypatch.setattr(prior, "read_folder", listing)
        made = draw()
        assert len(made.pictures) == 5
        made_by_other.update({picture.path: picture.path.stat().st_ino for picture in made.pictures})
        # from here on this run goes on, and must not remove what the other one is about to train on
        monkeypatch.setattr(prior, "_generate", lambda *args: None)
        return found

    made_by_other: dict[Path, int] = {}
    monkeypatch.setattr(prior, "read_folder", then_another_run_is_done)
    draw()
    assert {path: path.stat().st_ino for path in made_by_other} == made_by_other


@pytest.mark.parametrize(
    "change", [{"class_word": "toy"}, {"steps": 9}, {"guidance": 2.0}, {"resolution": 32}, {"prompt": "one {class}"}]
)
def test_pictures_made_otherwise_are_never_taken_for_these(
    painter: Painter, draw: Draw, tmp_path: Path, change: dict[str, object]
) -> None:
    place = str(tmp_path / "class")
    first = draw(path=place)
    second = draw(path=place, **change)
    assert not set(names(first)) & set(names(second))
    assert len(second.pictures) == 5
    assert second.findings.remarks == {
        "not used: it was generated by another model or with other settings": names(first)
    }


def test_another_model_makes_its_own(painter: Painter, draw: Draw, base: SdxlBase) -> None:
    first = draw()
    base.fingerprint = "f" * 32
    assert not set(names(first)) & set(names(draw()))


def test_ones_own_pictures_come_first_and_only_the_rest_is_generated(
    painter: Painter, draw: Draw, tmp_path: Path
) -> None:
    place = tmp_path / "class"
    place.mkdir()
    for i in range(3):
        drawn(30, 20 + i, seed=i).save(place / f"mine{i}.png")
    (place / "broken.png").write_bytes(b"")
    found = draw(path=str(place))
    assert names(found)[:3] == ["mine0.png", "mine1.png", "mine2.png"]
    assert (len(found.pictures), found.generated, painter.seeds) == (5, 2, [0, 1])
    assert found.findings.skipped == [("broken.png", "the file is empty")]
    fewer = draw(path=str(place), pictures=2)
    assert names(fewer) == ["mine0.png", "mine1.png"]
    assert fewer.findings.remarks == {"not used: more than prior.pictures=2": ["mine2.png", *names(found)[3:]]}


def test_each_class_may_have_its_own_folder(painter: Painter, draw: Draw, tmp_path: Path) -> None:
    for name in ("robot", "stuffed animal"):
        (tmp_path / "class" / name).mkdir(parents=True)
        drawn(20, 20, seed=len(name)).save(tmp_path / "class" / name / "mine.png")
    for name in ("robot", "stuffed animal"):
        found = draw(class_word=name, path=str(tmp_path / "class"), pictures=1)
        assert [picture.path for picture in found.pictures] == [tmp_path / "class" / name / "mine.png"]


def test_the_subjects_own_folder_is_refused(painter: Painter, base: SdxlBase, recipe: Recipe, folder: Path) -> None:
    with pytest.raises(UserError, match="is the folder of the subject's own pictures"):
        open_data(base, recipe(prior=PriorConfig(weight=1.0, path=str(folder))))
    assert len(list(folder.iterdir())) == 5


def test_generated_on_another_device_they_are_the_same_content(painter: Painter, draw: Draw) -> None:
    found = draw()
    found.pictures[0].path.unlink()
    Image.new("RGB", (16, 16), "white").save(found.pictures[0].path)  # as rounding might differ
    assert draw().content == found.content
    assert draw(pictures=4).content != found.content


@pytest.mark.parametrize("other_draws", [True, False], ids=["one_disk", "a_disk_each"])
def test_processes_share_the_work_and_each_has_all_pictures_in_the_end(
    painter: Painter, draw: Draw, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other_draws: bool
) -> None:
    def wait(_: object) -> list[None]:
        """Where the disk is shared, the other process has drawn its part by now."""
        folder = next((tmp_path / "cache").rglob("prior-*.png")).parent
        done = next(folder.glob("prior-*.png"))
        for i in (0, 2, 4) if other_draws else ():
            drawn(16, 16, seed=i).save(folder / f"{done.name[:-9]}{i:05d}.png")
        return [None, None]

    monkeypatch.setattr(prior.processes, "rank", lambda: 1)
    monkeypatch.setattr(prior.processes, "world_size", lambda: 2)
    monkeypatch.setattr(prior.processes, "gather", wait)
    assert len(draw().pictures) == 5
    assert painter.seeds == ([1, 3] if other_draws else [1, 3, 0, 2, 4])


def test_a_picture_of_another_process_that_is_damaged_on_this_machine_is_drawn_anew(
    painter: Painter, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw().pictures[2].path.write_bytes(b"")
    monkeypatch.setattr(prior.processes, "rank", lambda: 1)
    monkeypatch.setattr(prior.processes, "world_size", lambda: 2)
    monkeypatch.setattr(prior.processes, "gather", lambda _: None)
    assert len(draw().pictures) == 5
    assert painter.seeds[5:] == [2]


def test_a_folder_that_cannot_be_written_is_explained(painter: Painter, draw: Draw, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        draw(path=str(tmp_path / "file" / "class"))


def test_the_model_itself_draws_them(base: SdxlBase, recipe: Recipe, tmp_path: Path) -> None:
    settings = recipe(
        prior=PriorConfig(weight=1.0, pictures=3, path=str(tmp_path / "new"), steps=2, batch_size=2),
        train=TrainConfig(max_steps=1, batch_size=1),
    )
    data = open_data(base, settings)
    assert len(list((tmp_path / "new").glob("prior-*.png"))) == 3
    assert data.report.counts == {"pictures": 5, "class pictures": 3}
    assert data.report.generated == 3
    assert data.report.prompts == {"a photo of ikat robot": 5, "a photo of robot": 3}
    assert data.samples[(0, 0)]["class_time_ids"].tolist() == [16, 16, 0, 0, 16, 16]
    assert "  generated     3" in str(data.report)
