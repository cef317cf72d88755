"""The report in a headless Chromium without a network: no errors, no requests, readable on every screen."""

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.curate import check, curate
from pipeline.curation import Curation
from pipeline.generate import generate_pool
from pipeline.pool_plan import PoolSettings
from pipeline.progress import Progress
from pipeline.report.page import Example, Gallery, Report, Section, render
from pipeline.sample_faults import GENERATED_MEMBER_LIMIT

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

pytestmark = pytest.mark.browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
WIDTHS = (390, 1024, 1440)


@dataclass
class Tab:
    """A page and all that went wrong on it."""

    page: "playwright.Page"
    faults: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"needs one of {', '.join(NAMES)} on the PATH")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_tab(browser):
    """Opens files with the network off; in the end, nothing may have gone wrong on any of them."""
    contexts, tabs = [], []

    def open_file(path: Path, **options) -> "playwright.Page":
        context = browser.new_context(**options)
        context.set_offline(True)
        tab = Tab(context.new_page())
        tab.page.on("console", lambda message: tab.faults.append(f"console: {message.text}"))
        tab.page.on("pageerror", lambda error: tab.faults.append(f"error: {error}"))
        tab.page.on("dialog", lambda dialog: (tab.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        tab.page.on("requestfailed", lambda request: tab.faults.append(f"failed: {request.url}"))
        tab.page.on("request", lambda request: note_request(tab, request.url, path))
        tab.page.goto(path.as_uri())
        contexts.append(context)
        tabs.append(tab)
        return tab.page

    yield open_file
    for context in contexts:
        context.close()
    assert [fault for tab in tabs for fault in tab.faults] == []


def note_request(tab: Tab, url: str, path: Path) -> None:
    if not url.startswith("data:") and url.partition("#")[0] != path.as_uri():
        tab.faults.append(f"request: {url}")


@pytest.fixture(scope="module")
def report(ray_here, tmp_path_factory) -> Path:
    """Of a real run with rejects, duplicates, a filter, a sweep and clusters."""
    folder = tmp_path_factory.mktemp("browser")
    generate_pool(folder / "data", PoolSettings(samples=400, samples_per_shard=100))
    config = Curation.model_validate(
        {
            "pool": {
                "format": "webdataset",
                "path": f"{folder}/data/pool/*.tar",
                "max_member_bytes": GENERATED_MEMBER_LIMIT,
                "max_reject_fraction": 0.2,
            },
            "workspace": str(folder / "a-workspace-with-a-rather-long-name-2048x2048_v2"),
            "models": {"raw": {"library": "pixels", "size": 8}},
            "steps": [
                {"step": "rules", "min_side": 40, "min_words": 2},
                {"step": "exact_dedup"},
                {"step": "filter", "name": "small_files", "column": "bytes", "keep_fraction": 0.9, "best": "lowest"},
                {"step": "sweep", "model": "raw", "clusters": [4, 8]},
                {"step": "semantic_dedup", "model": "raw", "clusters": 8, "epsilon": 0.01, "epsilons": [0.001, 0.05]},
                {"step": "prune", "method": "dbp", "model": "raw", "clusters": 16, "keep_fraction": 0.5},
            ],
        }
    )
    curate(config, check(config), workers=2, progress=Progress())
    return Path(config.workspace) / "report.html"


@pytest.mark.ray
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_the_screen(report, open_tab, tmp_path, width, scheme):
    page = open_tab(report, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wider = page.evaluate(
        """(width) => [...document.querySelectorAll("main *, header *")]
            .filter((each) => !each.closest(".scroll, svg") && each.getBoundingClientRect().right > width + 1)
            .map((each) => each.outerHTML.slice(0, 80))""",
        width,
    )
    assert wider == []
    page.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)


@pytest.mark.ray
def test_every_image_is_there(report, open_tab):
    page = open_tab(report)
    images = page.evaluate("[...document.images].map((each) => [each.complete, each.naturalWidth, each.alt])")
    assert len(images) > 100
    assert all(complete and width > 0 and alt for complete, width, alt in images)


@pytest.mark.ray
def test_text_is_readable_in_both_modes(report, open_tab):
    """WCAG AA: 4.5 to 1 between text and what lies behind it."""
    for scheme in ("light", "dark"):
        page = open_tab(report, color_scheme=scheme)
        for selector in (".intro", ".note", ".headlines .kept dd", ".headlines .dropped dd", "nav a", ".funnel small"):
            colour = page.locator(selector).first.evaluate("(each) => getComputedStyle(each).color")
            for behind in ("--paper", "--card"):
                style = f"getComputedStyle(document.documentElement).getPropertyValue('{behind}')"
                ratio = contrast(rgb(colour), rgb(page.evaluate(style)))
                large = "dd" in selector
                assert ratio >= (3.0 if large else 4.5), f"{selector} on {behind}, {scheme}: {ratio:.2f}"


@pytest.mark.ray
def test_the_table_sorts(report, open_tab):
    page = open_tab(report)
    table = page.locator("#step-prune table.data")
    for label, column in (("d_intra", 2), ("size", 1), ("cluster", 0)):
        heading = table.locator("th", has_text=re.compile(f"^{label}$"))
        heading.locator("button").click()
        values = [float(cell) for cell in column_values(table, column)]
        assert len(values) > 5
        assert values == sorted(values, reverse=True)
        assert heading.get_attribute("aria-sort") == "descending"
        heading.locator("button").click()
        assert [float(cell) for cell in column_values(table, column)] == sorted(values)
        assert table.locator("th[aria-sort]").count() == 1


def column_values(table, column: int) -> list[str]:
    return table.evaluate("(table, i) => [...table.tBodies[0].rows].map((row) => row.cells[i].dataset.value)", column)


@pytest.mark.ray
def test_the_table_filters_and_leads_to_a_cluster(report, open_tab):
    page = open_tab(report)
    table = page.locator("#step-prune table.data")
    first = table.locator("tbody tr").first.locator("td").first.inner_text()
    share = table.locator("tbody tr").first.locator("td").last.inner_text()
    page.locator("input[type=search]").fill(share)
    visible = table.locator("tbody tr:visible")
    assert 1 <= visible.count() < table.locator("tbody tr").count()
    assert all(share in row for row in visible.all_inner_texts())
    table.get_by_role("link", name=first, exact=True).click()
    assert page.url.endswith(f"#prune-cluster-{first}")
    assert page.locator(f"#prune-cluster-{first} h3").inner_text() == f"Cluster {first}"


@pytest.mark.ray
def test_a_sample_opens_and_closes(report, open_tab):
    page = open_tab(report)
    thumb = page.locator("#glance button.thumb").first
    caption = thumb.locator("img").get_attribute("alt")
    thumb.click()
    dialog = page.locator("dialog[open]")
    assert dialog.locator(".caption").inner_text() == caption
    assert re.fullmatch("[0-9a-f]{32}", dialog.locator("code").inner_text())
    page.keyboard.press("Escape")
    assert dialog.count() == 0
    thumb.focus()
    page.keyboard.press("Enter")
    dialog.get_by_role("button", name="Close").click()
    assert dialog.count() == 0


def test_a_hostile_caption_does_nothing(open_tab, tmp_path):
    hostile = """</script><script>alert(1)</script><img src="https://example.invalid/x" onerror="alert(2)">"""
    example = Example("0" * 32, hostile, hostile, badge=hostile, facts=((hostile, hostile),))
    section = Section("s", hostile, hostile, (Gallery(hostile, (example,), hostile),))
    path = tmp_path / "report.html"
    path.write_bytes(render(Report(hostile, hostile, "0", (), (), (section,))))
    page = open_tab(path)
    page.locator("button.thumb").click()
    assert page.locator("dialog .caption").inner_text() == hostile
    assert page.locator("img").count() == 0


def rgb(colour: str) -> tuple[float, ...]:
    """The channels of `rgb(1, 2, 3)` or `#010203`, from 0 to 1."""
    colour = colour.strip()
    if colour.startswith("#"):
        return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return tuple(int(channel) / 255 for channel in re.findall(r"\d+", colour)[:3])


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """The contrast ratio of WCAG 2."""

    def luminance(channels: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)
