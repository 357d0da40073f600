"""The report: one HTML file, nothing fetched, every text escaped, every picture whole."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gancomp.report import ReportData, Stage, Table, write_report
from gancomp.report.plots import curves_plot

NASTY = '<script>alert("a")</script> & \'b\' onload="x" 写真'
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """The elements of a page; fails on tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def picture(seed: int, size: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, format="PNG")
    return buffer.getvalue()


def report(text: str = "text") -> ReportData:
    return ReportData(
        title=f"title {text}",
        subtitle=f"subtitle {text}",
        headline=[(f"9x {text}", f"label {text}")],
        captions=[f"input {text}", f"output {text}"],
        images=[[picture(0), picture(1)], [picture(2), picture(3)]],
        tables=[Table(f"table {text}", [f"column {text}"], [(f"row {text}", [f"cell {text}"])], f"note {text}")],
        plots=[(f"plot {text}", png(4))],
        curves=[(f"curve {text}", png(5))],
        stages=[Stage(f"stage {text}", f"amount {text}", f"time {text}", f"settings {text}")],
        facts=[(f"fact {text}", f"value {text}")],
        notes=[f"reading {text}"],
        command=f"command {text}",
    )


def write(tmp_path: Path, data: ReportData) -> str:
    write_report(tmp_path / "report.html", data)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_everything_is_shown(tmp_path: Path) -> None:
    page = Page(write(tmp_path, report()))
    text = "\n".join(page.texts)
    for part in (
        "title", "subtitle", "9x", "label", "input", "output", "table", "column", "row", "cell", "note", "plot", "curve",
        "stage", "amount", "time", "settings", "fact", "value", "reading", "command",
    ):  # fmt: skip
        assert f"{part} text" in text, part
    assert len(page.all("img")) == 6


def test_texts_are_escaped(tmp_path: Path) -> None:
    text = write(tmp_path, report(NASTY))
    page = Page(text)
    assert page.all("script") == []
    assert "".join(page.texts).count(NASTY) == 22, "the title twice, every other text once"
    assert [image["alt"] for image in page.all("img")] == [
        f"input {NASTY}, example 1", f"output {NASTY}, example 1", f"input {NASTY}, example 2", f"output {NASTY}, example 2",
        f"plot {NASTY}", f"curve {NASTY}",
    ]  # fmt: skip
    assert all(set(attributes) <= {"alt", "src"} for attributes in page.all("img"))


def test_nothing_is_fetched(tmp_path: Path) -> None:
    text = write(tmp_path, report())
    page = Page(text)
    assert {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "video", "audio", "base"} == set()
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    for word in ("http", "url(", "@import", "//"):
        assert word not in text.split("data:image/png")[0], word
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_pictures_are_embedded_exactly(tmp_path: Path) -> None:
    sources = [image["src"] for image in Page(write(tmp_path, report())).all("img")]
    for seed, source in enumerate(sources):
        data = base64.b64decode(source.partition(",")[2], validate=True)
        with Image.open(io.BytesIO(data)) as image:
            assert np.array_equal(image.convert("RGB"), picture(seed)), seed


def test_the_page_is_whole_and_says_its_encoding(tmp_path: Path) -> None:
    text = write(tmp_path, report("Straße"))
    assert text.startswith("<!doctype html><html lang=en><head><meta charset=utf-8>")
    assert text.endswith("</html>\n")
    assert "<title>title Straße</title>" in text


@pytest.mark.parametrize("part", ["headline", "images", "tables", "plots", "curves", "stages", "facts", "notes", "command"])
def test_empty_parts_are_left_out(tmp_path: Path, part: str) -> None:
    full = Page(write(tmp_path, report()))
    less = Page(write(tmp_path, replace(report(), **{part: "" if part == "command" else ()})))
    assert len(less.elements) < len(full.elements)
    headings = {
        "images": "Images of the test split",
        "stages": "How it was made",
        "facts": "Facts",
        "notes": "Reading the numbers",
    }
    if part in headings:
        assert headings[part] in full.texts
        assert headings[part] not in less.texts


def test_a_report_of_nothing_but_a_title(tmp_path: Path) -> None:
    page = Page(write(tmp_path, ReportData("a", "b")))
    assert page.all("h2") == []
    assert page.all("img") == []


def test_rows_of_images_must_be_complete(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        write_report(tmp_path / "report.html", replace(report(), images=[[picture(0)]]))
    assert list(tmp_path.iterdir()) == []


def test_training_curves_are_a_picture() -> None:
    data = curves_plot({"recon": [(1, 3.0), (2, 2.0), (3, 1.5)], "D": [(1, 0.5), (3, 0.7)]})
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        assert image.width > image.height > 100
        assert np.asarray(image.convert("L")).std() > 5
