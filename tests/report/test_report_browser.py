"""The page in a real browser: headless Chromium, every request but the page itself refused and counted."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from report_samples import ALL, curves, sweep

from prolu_tune.pareto import pareto_frontier
from prolu_tune.report import build_report
from prolu_tune.report.curves import make_plane

CHROMIUM = os.environ.get("PROLU_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE_MS = 120_000

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (a development dependency)")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the PATH, and PROLU_CHROMIUM is not set"),
    pytest.mark.xdist_group("browser"),
]

MAIN = "#ce_degradation-l0"
POINTS = f"{MAIN} svg g.mark-symbol path"


class Opened:
    """A page and what it said and asked for."""

    def __init__(self, browser, file: Path, *, width: int, scheme: str) -> None:
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.context.set_default_timeout(PATIENCE_MS)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.context.route("**/*", lambda route: self._route(route, file))
        self.page.goto(file.as_uri(), timeout=PATIENCE_MS)
        self.page.wait_for_function("document.documentElement.dataset.ready || !document.getElementById('trouble').hidden")

    def _route(self, route, file: Path) -> None:
        if route.request.url == file.as_uri():
            route.continue_()
        else:
            self.requests.append(route.request.url)
            route.abort()

    def count(self, selector: str) -> int:
        return self.page.locator(selector).count()


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    rows = curves(seeds=2)
    rows[7] |= {"l0": None, "state": "failed", "message": "gone"}
    return rows


@pytest.fixture(scope="module")
def file(rows, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(build_report(sweep(rows)).html, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE_MS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(browser, file) -> Iterator[Opened]:
    opened = Opened(browser, file, width=1280, scheme="light")
    yield opened
    opened.context.close()


def test_every_plot_is_drawn_without_a_message_or_a_request(opened):
    assert opened.count("figure[id]") == opened.count("figure[data-drawn] .chart svg.marks") >= 15
    assert opened.messages == [] and opened.requests == []
    empty = opened.page.evaluate(
        "[...document.querySelectorAll('figure[id]')].filter(f => !f.querySelector('svg .mark-symbol path, "
        "svg .mark-line path, "
        "svg .mark-rect path, svg .mark-area path')).map(f => f.id)"
    )
    assert empty == []


def test_the_broad_line_is_the_frontier_of_all_runs(opened, rows):
    finished = [row for row in rows if row["state"] == "finished"]
    expected = len(pareto_frontier([(row["l0"], row["ce_degradation"]) for row in finished]))
    line = opened.page.locator(f"{MAIN} svg g.mark-line path[stroke-width='11']").get_attribute("d")
    assert line.count("L") + line.count("M") == expected
    assert opened.count(POINTS) == len(finished)


def test_hovering_a_point_names_the_run_and_lights_up_its_row(opened, rows):
    opened.page.locator(POINTS).first.hover(force=True)
    tooltip = opened.page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    text = tooltip.inner_text()
    named = [row for row in rows if row["run_id"] in text]
    assert len(named) == 1 and named[0]["label"] in text
    lines = [line.split("\t")[0] for line in text.splitlines() if line.strip()]
    assert len(lines) == len(set(lines)), "every quantity once"
    assert opened.page.locator("tr.hot").get_attribute("data-run") == named[0]["run_id"]
    opened.page.mouse.move(2, 2)


def test_a_click_on_a_heading_sorts_by_value_and_a_second_one_the_other_way(opened):
    heading = opened.page.locator(".runs thead button", has_text="L0").first
    column = "[...document.querySelectorAll('.runs tbody')[0].rows].map(r => r.cells[4].dataset.v)"
    heading.click()
    rising = opened.page.evaluate(column)
    assert rising[-1] == "" and rising[:-1] == sorted(rising[:-1], key=float)
    heading.click()
    falling = opened.page.evaluate(column)
    assert falling[-1] == "", "what is missing stays last"
    assert falling[:-1] == sorted(rising[:-1], key=float, reverse=True)
    assert opened.page.locator(".runs th[aria-sort='descending']").count() == 1


def test_the_legend_takes_an_architecture_out_of_every_plot_and_back(opened, rows):
    before = opened.count(POINTS)
    own = sum(row["architecture"] == "prolu_ste+l1" and row["state"] == "finished" for row in rows)
    button = opened.page.locator(".legend button[data-architecture='prolu_ste+l1']")
    others = "#mse-l1 svg g.mark-symbol path"
    button.click()
    opened.page.wait_for_function(f"document.querySelectorAll('{POINTS}').length === {before - own}")
    assert opened.count(others) == before - own and button.get_attribute("aria-pressed") == "false"
    button.click()
    opened.page.wait_for_function(f"document.querySelectorAll('{POINTS}').length === {before}")
    assert opened.count(others) == before


def test_both_axes_of_the_main_plot_can_be_chosen(opened, rows):
    finished = [row for row in rows if row["state"] == "finished"]
    opened.page.select_option("#choose-y", "ce_loss_score")
    opened.page.select_option("#choose-x", "mse")
    opened.page.wait_for_function("document.getElementById('main-title').textContent === 'CE score against MSE'")
    opened.page.wait_for_function(f"document.querySelector('{MAIN} svg').textContent.includes('MSE (per dimension)')")
    assert "CE loss score" in opened.page.locator(f"{MAIN} svg").first.text_content()
    assert opened.count(POINTS) == len(finished)
    line = opened.page.locator(f"{MAIN} svg g.mark-line path[stroke-width='11']").get_attribute("d")
    expected = pareto_frontier([(row["mse"], -row["ce_loss_score"]) for row in finished])
    assert line.count("L") + line.count("M") == len(expected), "a score is better when it is larger"
    opened.page.select_option("#choose-y", "ce_degradation")
    opened.page.select_option("#choose-x", "l0")
    opened.page.wait_for_function("document.getElementById('main-title').textContent === 'CE degradation against L0'")
    assert (opened.messages, opened.requests) == ([], [])


@pytest.mark.parametrize(("x", "y"), [("l1", "ce_degradation"), ("l0", "ce_loss_score")])
def test_bands_of_any_plane_are_those_of_the_curves(opened, rows, x, y):
    opened.page.select_option("#choose-y", y)
    opened.page.select_option("#choose-x", x)
    opened.page.wait_for_function(f"document.querySelector('{MAIN}').noise?.rows?.[0]?.plane === '{x}|{y}'")
    drawn = opened.page.evaluate(f"document.querySelector('{MAIN}').noise")
    plane = make_plane([row for row in rows if row["state"] == "finished"], x, y)
    assert plane is not None
    for name in plane.architectures:
        low, high = plane.interval(name)
        known = np.isfinite(low)
        mine = [row for row in drawn["rows"] if row["architecture"] == name]
        # At the ends of a curve it is a matter of chance whether half of the replicates reach there.
        assert abs(len(mine) - known.sum()) <= 4
        places = [int(np.argmin(np.abs(np.log(plane.grid) - np.log(row["at"])))) for row in mine]
        both = [(row, place) for row, place in zip(mine, places, strict=True) if known[place]]
        assert [row["low"] for row, _ in both] == pytest.approx(low[[place for _, place in both]], rel=0.01)
        assert [row["high"] for row, _ in both] == pytest.approx(high[[place for _, place in both]], rel=0.01)
    opened.page.wait_for_function("document.getElementById('noise').textContent.includes('beyond noise on')")
    opened.page.wait_for_function(f"document.querySelectorAll('{MAIN} svg g.mark-area path').length >= {len(ALL)}")
    chances = np.stack(list(plane.chances().values()))
    known = np.isfinite(chances).any(axis=0)
    assert drawn["sure"] == pytest.approx((chances[:, known].max(axis=0) >= 0.95).mean(), abs=0.1)


def test_on_paper_controls_are_gone_and_the_page_prints(opened):
    opened.page.emulate_media(media="print")
    assert opened.page.locator(".choose").is_hidden() and opened.page.locator("#vg-tooltip-element").is_hidden()
    assert opened.page.locator(".legend").is_visible()
    assert opened.page.pdf().startswith(b"%PDF")
    opened.page.emulate_media(media="screen")


def test_it_opens_inside_mlflows_artifact_view(browser, file):
    """MLflow shows an HTML artifact as a blob in an iframe that may run scripts and nothing else."""
    context = browser.new_context()
    context.set_default_timeout(PATIENCE_MS)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.evaluate(
        """html => {
            const frame = document.createElement("iframe");
            frame.sandbox = "allow-scripts";
            frame.src = URL.createObjectURL(new Blob([html], { type: "text/html" }));
            document.body.append(frame);
        }""",
        file.read_text(encoding="utf-8"),
    )
    inside = page.wait_for_selector("iframe").content_frame()
    inside.wait_for_function("document.documentElement.dataset.ready")
    assert inside.evaluate("document.querySelectorAll('figure[data-drawn] svg.marks').length") >= 15
    inside.select_option("#choose-x", "mse")
    inside.wait_for_function("document.getElementById('main-title').textContent === 'CE degradation against MSE'")
    assert said == []
    context.close()


def test_a_phone_in_the_dark_shows_all_of_it_within_its_width(browser, file):
    opened = Opened(browser, file, width=400, scheme="dark")
    assert opened.messages == [] and opened.requests == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 400
    ends = "[...document.querySelectorAll('.chart svg.marks')].map(s => s.getBoundingClientRect().right)"
    assert len(opened.page.evaluate(ends)) >= 15 and max(opened.page.evaluate(ends)) <= 400
    background, label = opened.page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, "
        "getComputedStyle(document.querySelector('#ce_degradation-l0 svg .role-axis-label text')).fill]"
    )
    dark, light = (sum(int(part) for part in text[4:-1].split(",")) for text in (background, label))
    assert dark < 120 and light > 600, "text on the plots follows the page"
    assert opened.count(".legend button") == len(ALL)
    opened.context.close()
