"""What a report says, as plain data, and how it becomes one HTML file.

A section is a list of blocks; the template knows how to show each kind of block, so a new section needs no HTML.
"""

import base64
import functools
import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import ClassVar, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

Tone = Literal["kept", "dropped", "rejected", "plain"]

META_NAME = "winnow-report"


@dataclass(frozen=True)
class Example:
    """One sample.

    Attributes:
        uid: 32 hexadecimal digits.
        source: shard and key.
        caption: empty where there is none.
        image: a `data:` URI, empty where the image cannot be shown.
        width, height: of that thumbnail.
        badge: the number that matters here, in words short enough for a corner of the thumbnail.
        tone: of the badge.
        facts: (name, value) pairs.
    """

    uid: str
    source: str
    caption: str = ""
    image: str = ""
    width: int = 0
    height: int = 0
    badge: str = ""
    tone: Tone = "plain"
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Gallery:
    """Thumbnails side by side: ten in a row over the whole width of the page, else five."""

    kind: ClassVar[str] = "gallery"
    title: str
    examples: tuple[Example, ...]
    note: str = ""
    tone: Tone = "plain"
    wide: bool = True


@dataclass(frozen=True)
class Chart:
    """A drawing of `figures`, with what it shows in words. The legend is of (CSS class, label) pairs."""

    kind: ClassVar[str] = "chart"
    title: str
    svg: Markup
    note: str = ""
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Bar:
    """One line of `Bars`; `share` in [0, 1] is the length."""

    label: str
    count: int
    share: float
    note: str = ""


@dataclass(frozen=True)
class Bars:
    """Counts under labels, as horizontal bars; the headings are for those who cannot see them."""

    kind: ClassVar[str] = "bars"
    title: str
    bars: tuple[Bar, ...]
    tone: Tone = "dropped"
    wide: bool = True
    headings: tuple[str, str] = ("Reason", "Samples")


@dataclass(frozen=True)
class Column:
    """A heading; `share` shows a number in [0, 1] as a small bar."""

    label: str
    numeric: bool = True
    share: bool = False
    help: str = ""


@dataclass(frozen=True)
class Cell:
    """What a table shows, what it sorts by, and where it leads (an id on the page)."""

    text: str
    value: float | str
    link: str = ""


@dataclass(frozen=True)
class Table:
    """Rows that can be sorted by any column."""

    kind: ClassVar[str] = "table"
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Command:
    """Something to type."""

    kind: ClassVar[str] = "command"
    text: str
    note: str


@dataclass(frozen=True)
class Group:
    """Charts and galleries under one heading, as a card."""

    kind: ClassVar[str] = "group"
    id: str
    title: str
    note: str
    blocks: tuple[Chart | Gallery, ...]


Block = Gallery | Chart | Bars | Table | Command | Group


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    id: str
    title: str
    intro: str
    blocks: tuple[Block, ...]
    label: str = ""


@dataclass(frozen=True)
class Headline:
    """One of the large numbers at the top."""

    value: str
    label: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Stage:
    """One bar of the funnel.

    Attributes:
        name, note: of the step, and what it did in words.
        link: id of its section.
        rows_in, rows_out: samples before and after.
        seen: samples of the whole pool.
    """

    name: str
    note: str
    link: str
    rows_in: int
    rows_out: int
    seen: int

    @property
    def lost(self) -> int:
        """Samples that ended here."""
        return self.rows_in - self.rows_out


@dataclass(frozen=True)
class Report:
    """All that the page shows.

    Attributes:
        title: the workspace's last name.
        workspace: its path or URL.
        digest: names what the report was made from.
        headlines: large numbers.
        stages: the funnel, from the whole pool to what is kept; none where there is no funnel to show.
        sections: in order.
        kind: of report, in a word.
    """

    title: str
    workspace: str
    digest: str
    headlines: tuple[Headline, ...]
    stages: tuple[Stage, ...]
    sections: tuple[Section, ...]
    kind: str = "curation"


def render(report: Report) -> bytes:
    """The page: UTF-8, with everything it needs inside. Equal reports give equal bytes."""
    # What cannot be encoded (half of a surrogate pair in a caption) is replaced, not refused.
    return _environment().get_template("page.html.j2").render(report=report).encode("utf-8", "replace")


def asset_bytes() -> bytes:
    """Template, style and script, so that a report made with others is known to be outdated."""
    return "".join(map(_asset, ("page.html.j2", "blocks.html.j2", "page.css", "page.js"))).encode()


def percent(part: float, whole: float) -> str:
    """A share in words, never broken over two lines: `12.5 %`, `0.04 %`, `<0.01 %`, and `100 %` only for the whole."""
    share = 100 * part / whole if whole else 0.0
    match share:
        case 0 | 100:
            text = f"{share:.0f}"
        case _ if share < 0.01:
            text = "<0.01"
        case _ if share < 1:
            text = f"{share:.2f}"
        case _:
            text = f"{min(share, 99.9):.1f}"
    return f"{text}\N{NO-BREAK SPACE}%"


def number(value: float | str | bool | None) -> str:
    """A fact as text: `12,345`, `0.2135`, `-`."""
    match value:
        case None:
            return "-"
        case bool() | str():
            return str(value)
        case int():
            return f"{value:,}"
        case _:
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@functools.cache
def _environment() -> Environment:
    script = _asset("page.js")
    environment = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number}
    environment.globals |= {
        "percent": percent,
        "meta_name": META_NAME,
        "style": Markup(_asset("page.css")),
        "script": Markup(script),
        # The only script that may run is this one, whatever a caption holds.
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    return environment


def _asset(name: str) -> str:
    return resources.files("pipeline.report").joinpath(name).read_text(encoding="utf-8")
