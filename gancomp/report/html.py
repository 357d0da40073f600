"""One self-contained HTML file: pictures embedded, no script, nothing fetched."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from gancomp.io import write_text


@dataclass(frozen=True)
class Table:
    """A table: column heads, rows of a label and a cell per column, and a note below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    note: str = ""


@dataclass(frozen=True)
class Stage:
    """How a stage ran."""

    name: str
    amount: str
    time: str
    settings: str


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows; empty parts are left out."""

    title: str
    subtitle: str
    headline: Sequence[tuple[str, str]] = ()
    captions: Sequence[str] = ()
    images: Sequence[Sequence[Image.Image]] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[tuple[str, bytes]] = ()
    curves: Sequence[tuple[str, bytes]] = ()
    stages: Sequence[Stage] = ()
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = field(default_factory=tuple)
    command: str = ""


_STYLE = """
:root{--ink:#1c2430;--soft:#5b6675;--line:#e3e7ec;--paper:#fff;--wash:#f6f7f9;--accent:#1f6feb}
@media (prefers-color-scheme:dark){
  :root{--ink:#e7ebf0;--soft:#9aa6b5;--line:#2c3540;--paper:#12171d;--wash:#1a2129;--accent:#6ea8ff}
}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font-variant-numeric:tabular-nums;
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:980px;margin:0 auto;padding:40px 20px 64px}
h1{font-size:30px;line-height:1.2;margin:0 0 6px;letter-spacing:-.02em}
h2{font-size:18px;margin:44px 0 12px;letter-spacing:-.01em}
p{margin:0 0 12px}
.soft,figcaption,.note{color:var(--soft);font-size:14px;overflow-wrap:anywhere}
.headline{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:12px;margin:28px 0 8px}
.headline div{background:var(--wash);border:1px solid var(--line);border-radius:10px;padding:14px 18px}
.headline b{display:block;font-size:30px;line-height:1.15;letter-spacing:-.02em;color:var(--accent)}
.scroll{overflow-x:auto}
.images{border-collapse:separate;border-spacing:6px;margin-left:-6px;table-layout:fixed;width:100%;min-width:420px}
.images th{font-weight:500;font-size:13px;color:var(--soft);text-align:left;padding:0;vertical-align:bottom}
.images td{padding:0}
.images img{display:block;width:100%;border-radius:4px;border:1px solid var(--line)}
table.data{border-collapse:collapse;width:100%;font-size:15px}
table.data th,table.data td{padding:8px 12px 8px 0;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
table.data th:first-child,table.data td:first-child{text-align:left;white-space:normal}
table.data thead th{font-weight:500;color:var(--soft);font-size:13px}
table.left td,table.left th{text-align:left!important;white-space:normal!important}
figure{margin:0 0 20px}
figure img{max-width:100%;border-radius:8px;background:#fff;border:1px solid var(--line)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:6px 20px;font-size:15px}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
pre{background:var(--wash);border:1px solid var(--line);border-radius:8px;padding:14px 16px;overflow-x:auto;font-size:14px}
@media (max-width:520px){
  main{padding:24px 14px}h1{font-size:25px}
  dl{grid-template-columns:1fr;gap:0}dt{margin-top:8px}
}
@media print{main{padding:0}h2{break-after:avoid}tr,figure{break-inside:avoid}}
"""


def write_report(path: Path, data: ReportData) -> None:
    """Write the report as one HTML file, whole or not at all."""
    parts = [
        f"<h1>{_text(data.title)}</h1><p class=soft>{_text(data.subtitle)}</p>",
        _headline(data.headline),
        _images(data.captions, data.images),
        *[_table(table) for table in data.tables],
        *[_figure("Search", caption, png) for caption, png in data.plots],
        _stages(data.stages),
        "".join(_figure("Training" if i == 0 else "", *curve) for i, curve in enumerate(data.curves)),
        _facts(data.facts),
        _notes(data.notes),
        f"<h2>Use it</h2><pre>{_text(data.command)}</pre>" if data.command else "",
    ]
    title = _text(data.title)
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'><title>{title}</title>"
    body = "\n".join(part for part in parts if part)
    write_text(
        path,
        f"<!doctype html><html lang=en><head>{head}<style>{_STYLE}</style></head><body><main>{body}</main></body></html>\n",
    )


def _text(value: str) -> str:
    return html.escape(value, quote=True)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _headline(items: Sequence[tuple[str, str]]) -> str:
    if not items:
        return ""
    return "<div class=headline>" + "".join(f"<div><b>{_text(v)}</b>{_text(label)}</div>" for v, label in items) + "</div>"


def _images(captions: Sequence[str], rows: Sequence[Sequence[Image.Image]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th scope=col>{_text(caption)}</th>" for caption in captions)
    body = ""
    for number, row in enumerate(rows, start=1):
        alts = captions or [""] * len(row)
        cells = (
            f"<td><img alt='{_text(caption)}, example {number}' src='{_data_uri(_png(image))}'></td>"
            for caption, image in zip(alts, row, strict=True)
        )
        body += "<tr>" + "".join(cells) + "</tr>"
    table = f"<table class=images><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<h2>Images of the test split</h2><div class=scroll>{table}</div>"


def _table(table: Table) -> str:
    head = "<th></th>" + "".join(f"<th scope=col>{_text(column)}</th>" for column in table.columns)
    body = ""
    for label, cells in table.rows:
        body += f"<tr><td>{_text(label)}</td>" + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>"
    note = f"<p class=note>{_text(table.note)}</p>" if table.note else ""
    return (
        f"<h2>{_text(table.title)}</h2><div class=scroll><table class=data><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>{note}"
    )


def _figure(title: str, caption: str, png: bytes) -> str:
    heading = f"<h2>{_text(title)}</h2>" if title else ""
    text = _text(caption)
    return f"{heading}<figure><img alt='{text}' src='{_data_uri(png)}'><figcaption>{text}</figcaption></figure>"


def _stages(stages: Sequence[Stage]) -> str:
    if not stages:
        return ""
    rows = "".join(
        f"<tr><td>{_text(s.name)}</td><td>{_text(s.amount)}</td><td>{_text(s.time)}</td><td>{_text(s.settings)}</td></tr>"
        for s in stages
    )
    head = "<tr><th>stage</th><th>amount</th><th>time</th><th>settings</th></tr>"
    table = f"<table class='data left'><thead>{head}</thead><tbody>{rows}</tbody></table>"
    return f"<h2>How it was made</h2><div class=scroll>{table}</div>"


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    if not facts:
        return ""
    return "<h2>Facts</h2><dl>" + "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in facts) + "</dl>"


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return "<h2>Reading the numbers</h2>" + "".join(f"<p class=note>{_text(note)}</p>" for note in notes)
