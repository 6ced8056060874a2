"""The page in a real browser, on a desktop, on a phone, in the dark and on paper."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from eval.report.command import write_report
from tests.eval.report.world import (
    add_chat,
    add_samples,
    generated,
    images_evaluation,
    make_run,
    of_paper,
    study_evaluation,
    subjects_evaluation,
    vlm_evaluation,
)

pytestmark = pytest.mark.slow
WIDTHS = {"desktop": 1280, "phone": 390}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything that a page can have, and thirty runs of long names."""
    root = tmp_path_factory.mktemp("report")
    add_samples(make_run(root, "vision/lora", method="lora"))
    make_run(root, "vision/goat", method="goat")
    add_chat(make_run(root, "llava/moslora", validation_loss=1.25))
    of_paper(root, "eurosat", diagnosed=False)
    for number in range(30):
        config = {"train": {"learning_rate": number * 1e-4}, "data": {"path": "/somewhere/" + 60 * "long"}}
        make_run(root, f"sweep/{number:02}", diagnosed=False, config=config)
    make_run(root, "unfinished", diagnosed=False).joinpath("results.json").unlink()
    images_evaluation(root / "eval-images", "/" + 90 * "x")
    vlm_evaluation(root / "eval-vlm", "MoSLoRA")
    vlm_evaluation(root / "eval-vlm-again", "LoRA")
    subjects_evaluation(root / "eval-subjects", models={"dino": "facebook/dino-vits16"})
    study_evaluation(root / "study")
    generated(root / "pictures")
    return write_report([root], root / "report.html", title="Everything that a report can show")


def opened(browser: Any, report: Path, complaints: list[str], requests: list[str], **options: Any) -> Any:
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(60_000)  # a busy machine is no fault of ours
    told = ("error", "warning")
    page.on("console", lambda message: complaints.append(message.text) if message.type in told else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_load_state("networkidle")
    return page


def shot(page: Any, name: str) -> None:
    """For people to look at, where $MOSGOAT_SCREENSHOTS names a folder."""
    if folder := os.environ.get("MOSGOAT_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"report-{name}.png", full_page=True)


@pytest.mark.parametrize("device", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_shows_all_of_itself_and_asks_for_nothing_else(
    browser: Any, report: Path, device: str, scheme: str
) -> None:
    complaints, requests = list[str](), list[str]()
    size = {"width": WIDTHS[device], "height": 900}
    page = opened(browser, report, complaints, requests, viewport=size, color_scheme=scheme)
    shot(page, f"{device}-{scheme}")
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    broken = "[...document.images].filter(image => !image.complete || image.naturalWidth === 0).length"
    assert page.evaluate(broken) == 0
    assert page.evaluate("document.images.length") > 25
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[device]
    page.context.close()


def test_dark_mode_is_dark(browser: Any, report: Path) -> None:
    found = {}
    for scheme in ("light", "dark"):
        page = opened(browser, report, [], [], color_scheme=scheme)
        found[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.context.close()
    assert found["light"] == "rgb(255, 255, 255)"
    brightness = [int(part) for part in found["dark"].removeprefix("rgb(").removesuffix(")").split(",")]
    assert max(brightness) < 60


def test_on_paper_what_is_folded_is_there_and_nothing_is_dark(browser: Any, report: Path) -> None:
    page = opened(browser, report, [], [], viewport={"width": 794, "height": 1123}, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    shot(page, "print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.querySelector('#how-to-reproduce pre').getBoundingClientRect().height") > 0
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert page.evaluate("document.documentElement.scrollWidth") <= 794  # of A4; what is wider is cut off
    page.context.close()
