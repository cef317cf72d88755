"""The page from made-up data: hostile captions stay text, nothing is fetched, equal data give equal bytes."""

import re
from html.parser import HTMLParser

import pytest
from markupsafe import Markup

from pipeline.report.page import (
    Bar,
    Bars,
    Cell,
    Chart,
    Column,
    Command,
    Example,
    Gallery,
    Group,
    Headline,
    Report,
    Section,
    Stage,
    Table,
    number,
    percent,
    render,
)

HOSTILE = """</style></script><script>alert(1)</script><img src=x onerror="alert(2)">'"&{{ 7 * 7 }}"""
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="
VOID = {"meta", "link", "img", "input", "br", "hr", "rect", "line", "circle"}


def make_report(text: str) -> Report:
    """One block of each kind, with the same text wherever data can put one."""
    example = Example("0" * 32, text, text, PIXEL, 1, 1, text, ((text, text),))
    blank = Example("1" * 32, text)
    gallery = Gallery(text, (example, blank), text, "kept")
    columns = (Column(text, numeric=False, help=text), Column("n", share=True))
    blocks = (
        gallery,
        Chart(text, Markup("<svg></svg>"), text, (("kept", text),)),
        Bars(text, (Bar(text, 1, 0.5, text),)),
        Table(text, columns, ((Cell(text, text, "a"), Cell("1", 1)),), text),
        Command(text, text),
        Group("group-1", text, text, (gallery,)),
    )
    stages = (Stage(text, text, "section-1", 10, 4, 10), Stage("b", "", "", 0, 0, 0))
    return Report(text, text, "abc123", (Headline("10", text),), stages, (Section("section-1", text, text, blocks),))


class Page(HTMLParser):
    """Checks that tags are balanced; collects them with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(make_report(HOSTILE)).decode())


def test_hostile_text_is_text(page):
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert {attrs["src"] for tag, attrs in page.tags if tag == "img"} == {PIXEL}
    assert HOSTILE in page.text
    assert {attrs["alt"] for tag, attrs in page.tags if tag == "img"} == {HOSTILE}


def test_only_our_own_script_may_run(page):
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/]{43}='", policy)


def test_nothing_is_fetched(page):
    addresses = [attrs[name] for _, attrs in page.tags for name in ("src", "href", "srcset", "action") if name in attrs]
    assert all(address.startswith(("#", "data:")) for address in addresses)
    css = "".join(page.text)
    assert "url(" not in css
    assert "@import" not in css


def test_links_lead_somewhere():
    page = Page(render(make_report("plain")).decode())
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    links = {attrs["href"][1:] for _, attrs in page.tags if attrs.get("href", "").startswith("#")}
    assert links - ids == {"a"}  # the made-up link of the table


def test_equal_reports_give_equal_bytes():
    assert render(make_report("x")) == render(make_report("x"))
    assert b'<meta name="winnow-report" content="abc123">' in render(make_report("x"))[:4096]


def test_half_a_surrogate_pair_does_not_stop_the_page():
    assert b"a?b" in render(make_report("a\ud800b"))


def test_the_smallest_page():
    page = Page(render(Report("t", "w", "0", (), (), ())).decode())
    assert [tag for tag, _ in page.tags].count("h1") == 1


def test_percent():
    shares = [percent(*pair).replace("\N{NO-BREAK SPACE}", " ") for pair in ((0, 0), (0, 9), (9, 9), (1, 3), (1, 200))]
    assert shares == ["0 %", "0 %", "100 %", "33.3 %", "0.50 %"]
    assert percent(1, 1_000_000).startswith("<0.01")
    assert percent(999_999, 1_000_000).startswith("99.9")


def test_number():
    values = [None, True, "en", 12345, 0.213456, 12345.6]
    assert [number(value) for value in values] == ["-", "True", "en", "12,345", "0.2135", "12,346"]
