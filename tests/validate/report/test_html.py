"""The HTML report in a real browser: no requests, no scripts, no overflow, readable text."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reports import HOSTILE, clean, graded, hostile, other, realistic

from pplex.validate.report.compare import compare
from pplex.validate.report.html import anchor, to_html
from pplex.validate.report.schema import Measure, Report, Section, Tolerance

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")

CHROMIUM = shutil.which("chromium")
SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
PAGES: dict[str, Callable[[], str]] = {
    "report": lambda: to_html(realistic()),
    "clean": lambda: to_html(clean()),
    "hostile": lambda: to_html(hostile(HOSTILE + "</style></svg></title><script>alert(2)</script>\u202e'\"&amp;")),
    "comparison": lambda: compare(realistic(), other()).to_html(),
    "hostile-comparison": lambda: compare(hostile(), hostile()).to_html(),
}

Tab = Any
Open = Callable[..., Tab]

# Every visible text with the contrast between its colour and its background.
CONTRASTS = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const rgba = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = ([r, g, b, a], under) => [r, g, b].map((value, i) => a * value + (1 - a) * under[i]);
    const behind = (element) => {
        const all = [];
        for (; element; element = element.parentElement) all.push(rgba(getComputedStyle(element).backgroundColor));
        return all.reverse().reduce((under, colour) => over(colour, under), [255, 255, 255]);
    };
    const luminance = (colour) => colour.map((value) => value / 255)
        .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const text = walker.currentNode.data.trim(), element = walker.currentNode.parentElement;
        if (!text || !element.checkVisibility() || element.closest("title, desc")) continue;
        const style = getComputedStyle(element);
        const ground = behind(element), ink = element.closest("svg") ? style.fill : style.color;
        const [a, b] = [luminance(over(rgba(ink), ground)), luminance(ground)];
        found.push([text, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
    }
    return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every page as a file."""
    folder = tmp_path_factory.mktemp("pages")
    for name, make in PAGES.items():
        (folder / f"{name}.html").write_text(make(), "utf-8")
    return folder


@pytest.fixture
def open_page(browser: Any, pages: Path) -> Iterator[Open]:
    """Opens a page in a tab that allows no errors, no network requests and no dialogs."""
    contexts, complaints, requests = [], list[str](), list[str]()

    def open_it(name: str, **options: Any) -> Tab:
        contexts.append(browser.new_context(**options))
        tab = contexts[-1].new_page()
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", lambda line: complaints.append(line.text))
        tab.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto((pages / f"{name}.html").as_uri())
        return tab

    yield open_it
    for context in contexts:
        context.close()
    assert not complaints
    assert [url for url in requests if url != "data:," and not url.startswith(pages.as_uri())] == []
    assert len([url for url in requests if url.startswith("file:")]) == len(contexts)


def _picture(tab: Tab, name: str) -> None:
    """Save a picture in the folder PPLEX_ARTIFACTS, if set."""
    if folder := os.environ.get("PPLEX_ARTIFACTS"):
        tab.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.mark.parametrize(
    "name, size, scheme",
    [
        *((name, size, scheme) for name in ("report", "comparison") for size in SIZES for scheme in ("light", "dark")),
        ("clean", "desktop", "light"),
        ("clean", "phone", "dark"),
        ("hostile", "desktop", "dark"),
        ("hostile", "phone", "light"),
    ],
)
def test_a_page_fits_its_screen_and_is_readable(open_page: Open, name: str, size: str, scheme: str) -> None:
    tab = open_page(name, viewport=SIZES[size], color_scheme=scheme)
    _picture(tab, f"validation-{name}-{size}-{scheme}")
    tab.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth") == SIZES[size]["width"]
    contrasts = tab.evaluate(CONTRASTS)
    assert len(contrasts) > 30
    assert {text: round(ratio, 2) for text, ratio in contrasts if ratio < 4.5} == {}
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) > 380) is (scheme == "light")


@pytest.mark.parametrize("name", ["hostile", "hostile-comparison"])
def test_hostile_text_is_escaped(open_page: Open, name: str) -> None:
    tab = open_page(name)
    assert tab.locator("img, script, iframe").count() == 0
    assert tab.evaluate("[...document.querySelectorAll('*')].flatMap((e) => [...e.attributes])"
                        ".filter((a) => a.name.startsWith('on') || /javascript:/i.test(a.value)).length") == 0  # fmt: skip
    assert HOSTILE in tab.locator("h1").inner_text() and HOSTILE in tab.title()
    assert "\u202e" not in tab.content()


def test_the_verdict_names_and_links_failures_with_their_excess(open_page: Open) -> None:
    tab = open_page("report")
    verdict = tab.locator("section.verdict")
    assert verdict.locator(".word").inner_text().split() == ["✗", "FAILED"]
    assert "outside 4 of 9 tolerances" in verdict.inner_text()
    lines = [" ".join(line.split()) for line in verdict.locator("li").all_inner_texts()]
    assert lines[0] == "graphs.temporal.layer_error 0.95 > 0.001 at layers.1.gating 950 times the limit"
    assert lines[1] == "graphs.depth.layer_error 0.0010004 > 0.001 at layers.5.in_proj 4e-7 too high"
    assert lines[2] == "graphs.temporal.ring_error not measured, must be ≤ 0.001"
    assert lines[3] == "drift.same_audio 0.9412 < 0.95 at codebook 7 0.0088 too low"
    verdict.get_by_role("link", name="drift.same_audio").click()
    row = tab.locator("tr:target")
    assert "drift.same_audio" in row.inner_text() and "FAILED" in row.inner_text()
    assert row.bounding_box()["y"] >= 0


def test_a_report_without_failures_says_passed(open_page: Open) -> None:
    tab = open_page("clean")
    assert tab.locator(".verdict .word").inner_text().split() == ["✓", "PASSED"]
    assert tab.locator("text=FAILED").count() == 0


def test_every_link_leads_somewhere(open_page: Open) -> None:
    for name in ("report", "comparison"):
        tab = open_page(name)
        links = tab.locator("a").evaluate_all("all => all.map((a) => a.getAttribute('href'))")
        assert len(links) >= 4
        assert all(tab.evaluate("id => document.getElementById(id) !== null", link[1:]) for link in links)


def test_the_head_names_bundle_and_reference(open_page: Open) -> None:
    text = open_page("report").locator(".compared").inner_text()
    for word in ("TensorRT-RTX 1.7.1 (H200, sm_90)", "int8", "fp32", "our torch modules", "NVIDIA H200", "3000", "0.8"):
        assert word in text


def test_every_tolerance_shows_its_reason_and_every_section_its_question(open_page: Open) -> None:
    tab = open_page("report")
    for section in realistic().sections:
        part = tab.locator(f"[id='{anchor('section', section.key)}']")
        assert part.get_by_role("heading", level=2).inner_text() == section.question
        assert part.locator("figure svg").count() == len(section.plots)
        assert part.locator("details").count() == len(section.tables)
        for measure in section.measures:
            row = part.locator(f"[id='{anchor('measure', measure.name)}']").inner_text()
            assert measure.what in row and measure.where in row
            assert measure.tolerance is None or measure.tolerance.reason in row
        if not any(measure.tolerance for measure in section.measures):
            assert "for information" in part.locator(".kicker").inner_text()


def test_a_long_table_is_folded_and_scrolls(open_page: Open) -> None:
    tab = open_page("report", viewport=SIZES["desktop"])
    details = tab.locator("details", has_text="Layers of temporal")
    assert details.get_attribute("open") is None
    assert tab.locator("details", has_text="Share of same tokens").get_attribute("open") is not None
    details.locator("summary").click()
    assert details.locator("tbody tr").count() == 192
    assert details.locator(".tall").bounding_box()["height"] < 500


def test_printing_shows_everything(open_page: Open) -> None:
    tab = open_page("report", color_scheme="dark", viewport={"width": 720, "height": 1000})
    tab.emulate_media(media="print")
    last = tab.get_by_role("cell", name="layers.31.gating", exact=True)
    assert last.bounding_box() is not None and last.bounding_box()["height"] > 5
    assert tab.evaluate("[...document.querySelectorAll('.scroll')].every((e) => e.scrollHeight <= e.clientHeight + 1)")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert min(ratio for _, ratio in tab.evaluate(CONTRASTS)) >= 4.5


def test_a_report_without_tolerances_does_not_pass() -> None:
    html = to_html(replace(realistic(), sections=realistic().sections[-1:]))
    assert "NO VERDICT" in html and "no measure has a tolerance" in html and "PASSED" not in html


def test_the_grade_stands_beside_the_verdict_with_its_figures() -> None:
    html = to_html(graded())
    verdict = html[html.index('aria-label="Verdict"') :].partition("</section>")[0]
    assert "Grade <b>audible</b>: expect other words" in verdict and "health.looped_text 0.4 share" in verdict
    assert "Grade" not in to_html(realistic())


@pytest.mark.parametrize("value, shown", [(1.0004e-3, "0.0010004"), (9.99996e-4, "0.000999996"), (1e-3, "0.001")])
def test_a_value_is_not_rounded_across_its_tolerance(value: float, shown: str) -> None:
    measure = Measure("m", value, "", "", Tolerance(1e-3, ""))
    html = to_html(Report("", {}, {}, {}, {}, (Section("s", "S", "?", (measure,)),)))
    assert f"<b>{shown}</b>" in html
    assert ("FAILED" in html) is (value > 1e-3)


def test_the_same_report_gives_the_same_page_without_scripts_or_addresses() -> None:
    html = to_html(realistic())
    assert html == to_html(realistic())
    assert "<script" not in html and "@import" not in html
    assert set(re.findall(r"https?://[^\"\s<]+", html)) == {"http://www.w3.org/2000/svg"}
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
