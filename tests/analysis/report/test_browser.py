"""The report's page in a real browser, opened from disk as a reader does, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import plotly.graph_objects as go
import pytest

from study.analysis.records import load_study_records
from study.analysis.report.comparison import write_comparison
from study.analysis.report.page import render_page
from study.analysis.report.registry import answer_questions
from study.analysis.report.report import write_report
from study.record.layout import StudyFolder
from tests.analysis.conftest import build_study, write_study

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

LEVELS = {"norm": ["sn", "bn"], "batch_size": [2, 16]}
N_TRIALS = 12
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1100, "height": 900}


def _scatter() -> go.Figure:
    """Three points, of which the last leads nowhere."""
    figure = go.Figure(layout={"title": {"text": "Points", "subtitle": {"text": "three"}}, "height": 300})
    figure.add_scatter(x=[1, 2, 3], y=[1, 2, 1], mode="markers", marker={"size": 20}, customdata=[[1], [0], [-1]])
    steps = [{"label": str(n), "method": "restyle", "args": [{"y": [[1, n, 1]]}]} for n in (1, 2)]
    figure.layout.sliders = [{"active": 1, "currentvalue": {"prefix": "epoch "}, "steps": steps}]
    figure.layout.meta = {"trials": [[0, 1, 2, 7], [5]], "alt": "Three points, two of which lead to trials"}
    return figure


def _heat_map() -> go.Figure:
    figure = go.Figure(layout={"title": {"text": "Cells"}, "height": 300})
    figure.add_heatmap(z=[[1, 2], [3, 4]], customdata=[[[0], [1]], [[2], [-1]]])
    figure.layout.meta = {"trials": [[0], [1, 2], [3, 4, 5]]}
    return figure


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    return write_study(tmp_path_factory.mktemp("study"), build_study(replicates=3, **LEVELS))


@pytest.fixture(scope="module")
def path(study: StudyFolder) -> Path:
    """A page with figures and effects that lead to trials."""
    records = load_study_records(study)
    answers = {
        name: replace(answer, effects=[replace(effect, trials=[3, 4, 5]) for effect in answer.effects])
        for name, answer in answer_questions(records).items()
    }
    page = study.path / "page.html"
    page.write_text(render_page(records, answers, {"useful": [_scatter()], "impacts": [_heat_map()]}), "utf-8")
    return page


@pytest.fixture(scope="module")
def opened(browser: Browser, path: Path) -> Iterator[Page]:
    page = browser.new_page(viewport=DESK)
    page.goto(path.as_uri())
    yield page
    page.close()


@pytest.fixture
def page(opened: Page) -> Page:
    """The page at the desk, at its top, showing all."""
    opened.emulate_media(color_scheme="light", media="screen")
    opened.set_viewport_size(DESK)
    opened.evaluate("document.querySelectorAll('details').forEach(one => one.open = false)")
    opened.evaluate("location.hash = live.textContent = ''; scrollTo(0, 0)")
    return opened


def _wait_for_shown(page: Page, rows: list[int]) -> None:
    """Waits until the table shows the trials with these row numbers: a page hears of its new address after a click."""
    shown = "[...document.querySelectorAll('.trials > tbody')].flatMap((row, n) => row.checkVisibility() ? [n] : [])"
    page.wait_for_function(f"rows => JSON.stringify({shown}) === JSON.stringify(rows)", arg=rows)


def _focused(page: Page) -> str:
    text: str = page.evaluate("document.activeElement.id || document.activeElement.closest('tr')?.id || ''")
    return text


def test_a_real_report_opens_without_errors_or_requests_and_draws(browser: Browser, study: StudyFolder) -> None:
    report = write_report(study)
    page = browser.new_page(viewport=DESK)
    problems: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    assert problems == []
    assert requests == [report.as_uri()]
    drawn = page.evaluate(
        "[...document.querySelectorAll('.plot')].map(plot => plot.querySelectorAll('svg path').length)"
    )
    assert len(drawn) > 5
    assert min(drawn) > 0
    page.close()


def test_a_click_on_a_point_shows_its_trials(page: Page) -> None:
    page.locator("#figure-useful-1 .point").nth(1).click(force=True)
    _wait_for_shown(page, [0, 1, 2, 7])
    assert page.url.endswith("#trials=0-2,7")
    assert _focused(page) == "trials-title"
    assert "4 of 12" in page.locator("#shown").inner_text()


def test_a_click_on_a_cell_shows_its_trials(page: Page) -> None:
    panel = page.locator("#figure-impacts-1 .nsewdrag")
    box = panel.bounding_box()
    assert box
    panel.click(position={"x": 0.75 * box["width"], "y": 0.75 * box["height"]})  # below, right
    _wait_for_shown(page, [1, 2])


@pytest.mark.parametrize(
    ("figure", "keys", "rows"),
    [
        ("useful", ["ArrowRight"], [5]),
        ("useful", ["ArrowRight", "ArrowRight"], [0, 1, 2, 7]),
        ("useful", ["ArrowLeft"], [0, 1, 2, 7]),  # the last that leads somewhere
        ("impacts", ["ArrowDown", "ArrowDown", "ArrowDown"], [3, 4, 5]),
    ],
)
def test_keys_reach_every_point(page: Page, figure: str, keys: list[str], rows: list[int]) -> None:
    page.locator(f"#figure-{figure}-1").focus()
    for key in ["Escape", *keys, "Enter"]:
        page.keyboard.press(key)
    page.wait_for_function("document.activeElement.id == 'trials-title'")
    _wait_for_shown(page, rows)


@pytest.mark.parametrize(("figure", "said"), [("useful", "(1, 1). Point 1 of 2."), ("impacts", "z: 1. Point 1 of 3.")])
def test_a_point_is_said_aloud(page: Page, figure: str, said: str) -> None:
    page.locator(f"#figure-{figure}-1").focus()
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("said => live.textContent.endsWith(said)", arg=said, timeout=10_000)


def test_keys_move_a_slider(page: Page) -> None:
    page.locator("#figure-useful-1").focus()
    for key, epoch in (("PageUp", "epoch 1"), ("PageDown", "epoch 2"), ("PageDown", "epoch 2")):
        page.keyboard.press(key)
        page.wait_for_function(f"document.querySelector('#figure-useful-1 .slider-label').textContent == '{epoch}'")
        assert page.locator("#live").inner_text() == epoch
        assert page.evaluate("document.querySelector('#figure-useful-1').data[0].y[1]") == int(epoch[-1])


def test_a_number_leads_to_its_trials_and_back(page: Page) -> None:
    page.locator("#answer-useful a.data").first.click()
    _wait_for_shown(page, [3, 4, 5])
    page.locator("#show-all").click()
    _wait_for_shown(page, list(range(N_TRIALS)))
    page.go_back()
    page.wait_for_function("location.hash == '#trials=3-5'")
    _wait_for_shown(page, [3, 4, 5])


def test_a_count_of_the_coverage_leads_to_its_cell(page: Page) -> None:
    page.locator("#plan tbody a.data").first.click()
    page.wait_for_function("document.querySelectorAll('.trials > tbody:not([hidden])').length === 3")
    rows = page.evaluate("[...document.querySelectorAll('.trials > tbody:not([hidden])')].map(one => one.textContent)")
    assert all("sn-batch_size2" in row for row in rows)


def test_a_link_from_elsewhere_opens_its_trial(browser: Browser, path: Path) -> None:
    page = browser.new_page(viewport=DESK)
    page.goto(f"{path.as_uri()}#trial-5")
    assert _focused(page) == "trial-5"
    assert page.locator("#trial-5 + .more").is_visible()
    assert not page.locator("#trial-6 + .more").is_visible()
    assert "python run_study.py" in page.locator("#trial-5 + .more").inner_text()
    page.close()


def test_the_keyboard_opens_a_trial(page: Page) -> None:
    page.evaluate("location.hash = '#trials=9-10'")
    page.locator("#trial-9 .toggle").press("Enter")
    assert page.locator("#trial-9 + .more").is_visible()
    assert page.locator("#trial-9 .toggle").get_attribute("aria-expanded") == "true"


@pytest.mark.parametrize("width", [360, 390])
def test_a_phone_scrolls_down_alone(page: Page, width: int) -> None:
    page.set_viewport_size({**PHONE, "width": width})
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.locator("#trial-0 .toggle").click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.wait_for_function(
        "[...document.querySelectorAll('.plot svg')].every(svg => svg.getBoundingClientRect().right <= innerWidth)"
    )
    page.locator("#trial-0 .toggle").click()


def test_the_dark_page_has_light_figures(page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("getComputedStyle(document.querySelector('.plot .xtick text')).fill == 'rgb(232, 234, 237)'")


def test_print_is_black_on_white_with_everything_open_and_nothing_cut(page: Page) -> None:
    page.emulate_media(color_scheme="dark", media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("getComputedStyle(document.querySelector('.plot .xtick text')).fill == 'rgb(0, 0, 0)'")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("#trial-8 + .more").is_visible()
    assert page.evaluate("document.querySelector('.plot svg').getBoundingClientRect().width") <= 680  # of A4
    assert page.pdf(prefer_css_page_size=True).count(b"/Type /Page") > 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_bars_a_screen_reader(page: Page, scheme: str) -> None:
    """By axe-core: contrast, labels, landmarks, the order of headings, tables, what can be focused."""
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.wait_for_timeout(100)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_without_scripts_the_page_reads(browser: Browser, path: Path) -> None:
    context = browser.new_context(java_script_enabled=False, viewport=DESK)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("#answer-impacts .finding").is_visible()
    assert "JavaScript" in page.locator("noscript").inner_text()
    assert page.locator("#answer-useful a.data").first.get_attribute("href") == "#trial-3"
    page.locator("#trial-list > summary").click()
    assert page.locator("#trial-3 + .more").is_visible()
    context.close()


def test_studies_side_by_side(browser: Browser, study: StudyFolder, tmp_path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    other = write_study(
        tmp_path / "other", build_study(replicates=1, **LEVELS), only=lambda trial: trial.config.norm == "sn"
    )
    page = browser.new_page(viewport=PHONE)
    page.goto(write_comparison(study, [other]).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.close()
