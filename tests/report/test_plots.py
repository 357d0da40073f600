"""The Pareto plot: valid PNG files that show the records."""

from __future__ import annotations

import builtins
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from gancomp.errors import ConfigError
from gancomp.report import plots
from gancomp.report.plots import curves_plot, pareto_plot, si


def record(config_str: str, macs: float, score: float | None) -> dict:
    return {"config_str": config_str, "cost": {"macs": macs}, "metrics": {"fd": score}}


RECORDS = [record("16_16", 2.0e9, 40.0), record("24_16", 2.5e9, 30.0), record("32_16", 3.0e9, 35.0), record("24_24", 4e9, 20.0)]


def plot(path: Path, records=RECORDS, chosen=RECORDS[1], **changes) -> Path:
    options = {
        "cost_key": "macs", "objective_key": "fd", "maximize": False, "limit": 2.6e9,
        "cost_label": "MACs", "objective_label": "fd",
    }  # fmt: skip
    pareto_plot(path, records, chosen, **{**options, **changes})
    return path


@pytest.fixture
def drawn(monkeypatch) -> list[matplotlib.figure.Figure]:
    """The figures that were drawn."""
    figures = []
    original = plots._figure

    def figure(*size: float):
        figures.append(original(*size))
        return figures[-1]

    monkeypatch.setattr(plots, "_figure", figure)
    return figures


def test_a_valid_png(tmp_path: Path) -> None:
    with Image.open(plot(tmp_path / "new" / "pareto.png")) as image:
        assert image.format == "PNG"
        assert image.width > image.height > 300
        assert np.asarray(image.convert("L")).std() > 5
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["pareto.png"]


def test_what_is_drawn(tmp_path: Path, drawn: list) -> None:
    plot(tmp_path / "p.png")
    (axes,) = drawn[0].axes
    everything, front, chosen = (np.asarray(c.get_offsets()) for c in axes.collections)
    assert everything.tolist() == [[2.0e9, 40], [2.5e9, 30], [3.0e9, 35], [4e9, 20]]
    assert front.tolist() == [[2.0e9, 40], [2.5e9, 30], [4e9, 20]], "32_16 costs more and is worse than 24_16"
    assert chosen.tolist() == [[2.5e9, 30]]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["24_16\n2.5 G, 30", "budget 2.6 G"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("MACs", "fd")


def test_higher_can_be_better(tmp_path: Path, drawn: list) -> None:
    plot(tmp_path / "p.png", chosen=RECORDS[0], maximize=True, limit=None)
    (axes,) = drawn[0].axes
    assert np.asarray(axes.collections[1].get_offsets()).tolist() == [[2.0e9, 40]]
    assert len(axes.texts) == 1


def test_records_without_a_finite_score_are_left_out(tmp_path: Path, drawn: list) -> None:
    plot(tmp_path / "p.png", [*RECORDS, record("8_8", 1e9, None)])
    (axes,) = drawn[0].axes
    assert len(axes.collections[0].get_offsets()) == 4


def test_a_single_record(tmp_path: Path) -> None:
    plot(tmp_path / "p.png", RECORDS[:1], RECORDS[0], limit=None)
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_names_are_text_not_formulas(tmp_path: Path) -> None:
    plot(tmp_path / "p.png", objective_label="fd_a$b_{$ on the <validation> split & more")
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_many_curves(drawn: list) -> None:
    points = [(step, 1.0 / step) for step in range(1, 200)]
    curves_plot({"recon": points, "G": points[:2]})
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == ["recon", "G"]
    raw, smooth = drawn[0].axes[0].lines
    assert raw.get_ydata().tolist() == [value for _, value in points]
    assert len(smooth.get_ydata()) == len(points)
    assert smooth.get_ydata()[100] == pytest.approx(np.mean([1.0 / s for s in range(89, 102)]))


def test_a_machine_without_a_plotting_library(tmp_path: Path, monkeypatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="plots need matplotlib: pip install matplotlib"):
        plot(tmp_path / "p.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.1234, "0.123"), (999, "999"), (1000, "1 k"), (2.5e6, "2.5 M"), (1.8457e9, "1.85 G"), (-3e9, "-3 G")],
)
def test_si_prefixes(value: float, text: str) -> None:
    assert si(value) == text
