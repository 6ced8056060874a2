"""The study in a real browser: two raters, a crash in between, keyboard, touch, a phone, and no JavaScript."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from eval.study.database import Study
from eval.study.results import count
from tests.eval.study.serving import running
from tests.eval.study.world import METHODS, invite, make_study, organiser, votes

pytestmark = pytest.mark.slow
PHONE = {"width": 390, "height": 844}
PAIRS = 6


@pytest.fixture
def study(tmp_path: Path) -> Study:
    # 256 pixels: large enough to look like pictures on the screenshots
    return make_study(tmp_path, size=256)[0]


def pictures_to(tmp_path: Path) -> Path:
    """Where screenshots go: $MOSGOAT_SCREENSHOTS, to be looked at, or the test's own folder."""
    folder = Path(os.environ.get("MOSGOAT_SCREENSHOTS") or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def open_page(browser: Any, complaints: list[str], **options: Any) -> Any:
    """A page of a browser of its own; what its console complains about is collected."""
    context = browser.new_context(**options)
    told = ("error", "warning")
    context.on("console", lambda message: complaints.append(message.text) if message.type in told else None)
    page = context.new_page()
    page.set_default_timeout(60_000)  # a busy machine is no fault of ours
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page


def position(page: Any) -> str:
    return page.locator("header .bar, header.bar").inner_text().splitlines()[0]


def test_two_raters_finish_though_one_and_the_server_are_killed_half_way(
    study: Study, browser: Any, tmp_path: Path
) -> None:
    first, second = invite(study, 2)
    shots, log, complaints = pictures_to(tmp_path), tmp_path / "log", []
    with running(study.path, log) as (server, address):
        page = open_page(browser, complaints, viewport={"width": 1366, "height": 768})
        page.goto(f"{address}/enter/{first}")
        assert page.url == f"{address}/welcome"  # the token is out of the address bar
        page.screenshot(path=shots / "welcome.png")
        page.get_by_role("link", name="Begin").click()
        page.wait_for_load_state("networkidle")
        page.screenshot(path=shots / "rate.png")
        look_at_a_picture(page)
        for _ in range(PAIRS // 2):
            page.keyboard.press("1")
            page.keyboard.press("5")
            with page.expect_navigation():
                page.keyboard.press("Enter")
        assert "Pair 4 of 6" in position(page)
        page.keyboard.press("3")  # chosen, not sent: the crash may take it
        server.kill()
        page.context.close()
    assert len(votes(study)) == PAIRS  # three pairs, two questions

    with running(study.path, log) as (_, address):
        page = open_page(browser, complaints, viewport={"width": 1366, "height": 768}, color_scheme="dark")
        page.goto(f"{address}/enter/{first}")
        page.screenshot(path=shots / "welcome-back-dark.png")
        page.get_by_role("link", name="Go on with pair 4 of 6").click()
        page.wait_for_load_state("networkidle")
        page.keyboard.press("2")
        page.screenshot(path=shots / "rate-dark.png")
        for _ in range(PAIRS // 2):
            page.keyboard.press("3")
            page.keyboard.press("4")
            with page.expect_navigation():
                page.keyboard.press("Enter")
        assert page.url == f"{address}/thanks"
        page.screenshot(path=shots / "thanks.png")
        rate_on_a_phone(browser, f"{address}/enter/{second}", complaints, shots)
        look_at_results(browser, f"{address}/enter/{organiser(study)}", complaints, shots)
    assert len(votes(study)) == 2 * 2 * PAIRS
    assert not complaints
    with study.reading() as db:
        counted = count(db)
    assert counted.finished == 2
    # The first rater said left, tie three times and then right, left.
    assert [c.left for c in counted.comparisons] == [pytest.approx(0.25), pytest.approx(1.0)]
    assert not any(token in log.read_text() for token in (first, second))


def look_at_a_picture(page: Any) -> None:
    """A click opens the picture large, in a window of its own."""
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Left picture; opens large").click()
    window = opened.value
    window.wait_for_load_state()
    assert window.evaluate("document.images[0].naturalWidth") == 256
    window.close()


def rate_on_a_phone(browser: Any, link: str, complaints: list[str], shots: Path) -> None:
    """Touch only; the second rater always says right, tie."""
    page = open_page(browser, complaints, viewport=PHONE, device_scale_factor=2, has_touch=True, is_mobile=True)
    page.goto(link)
    page.screenshot(path=shots / "phone-welcome.png", full_page=True)
    page.get_by_role("link", name="Begin").tap()
    page.wait_for_load_state("networkidle")
    page.screenshot(path=shots / "phone-rate.png")
    # Nothing lies beside the screen.
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert METHODS[0] not in page.content()
    for number in range(PAIRS):
        groups = page.get_by_role("group")
        groups.nth(0).get_by_role("radio", name="Right").tap()
        groups.nth(1).get_by_role("radio", name="About the same").tap()
        if number == 0:
            page.screenshot(path=shots / "phone-chosen.png", full_page=True)
        with page.expect_navigation():
            page.get_by_role("button").tap()
    assert page.url.endswith("/thanks")
    page.context.close()


def look_at_results(browser: Any, link: str, complaints: list[str], shots: Path) -> None:
    page = open_page(browser, complaints, viewport={"width": 1200, "height": 900})
    page.goto(link)
    assert page.url.endswith("/results")
    assert METHODS[0] in page.content()
    page.screenshot(path=shots / "results.png", full_page=True)
    page.set_viewport_size(PHONE)
    page.screenshot(path=shots / "phone-results.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.context.close()


def test_everything_works_without_javascript(study: Study, browser: Any, tmp_path: Path) -> None:
    complaints: list[str] = []
    with running(study.path, tmp_path / "log") as (_, address):
        page = open_page(browser, complaints, java_script_enabled=False)
        page.goto(f"{address}/enter/{invite(study)[0]}")
        page.get_by_role("link", name="Begin").click()
        for _ in range(PAIRS):
            page.get_by_role("radio", name="Left").nth(0).check()
            page.get_by_role("radio", name="Right").nth(1).check()
            page.get_by_role("button", name="Next pair").click()
        page.get_by_role("heading", name="Thank you").wait_for()
    assert len(votes(study)) == 2 * PAIRS
    assert not complaints


def test_the_last_answer_is_changed_by_keyboard_and_a_pair_needs_both_answers(
    study: Study, browser: Any, tmp_path: Path
) -> None:
    complaints: list[str] = []
    with running(study.path, tmp_path / "log") as (_, address):
        page = open_page(browser, complaints)
        page.goto(f"{address}/enter/{invite(study)[0]}")
        page.get_by_role("link", name="Begin").click()
        page.wait_for_url("**/rate")
        page.keyboard.press("2")
        page.keyboard.press("Enter")  # the browser asks for the second answer
        assert "Pair 1 of 6" in position(page)
        page.keyboard.press("5")
        with page.expect_navigation():
            page.keyboard.press("Enter")
        with page.expect_navigation():
            page.keyboard.press("b")
        assert page.url.endswith("/last")
        assert page.get_by_role("radio", name="About the same").nth(0).is_checked()
        page.keyboard.press("1")
        page.screenshot(path=pictures_to(tmp_path) / "change.png")
        with page.expect_navigation():
            page.keyboard.press("Enter")
        assert "Pair 2 of 6" in position(page)
    with study.reading() as db:
        rows = db.execute("SELECT question, result, revision FROM votes ORDER BY question").fetchall()
    assert [(row["question"], row["revision"]) for row in rows] == [
        ("prompt_consistency", 2),
        ("subject_similarity", 2),
    ]
    assert rows[0]["result"] == "tie"
    assert rows[1]["result"] != "tie"
    assert not complaints
