"""The plots of search and training. matplotlib is imported when one is drawn, not before."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gancomp.errors import ConfigError
from gancomp.io import atomic_path
from gancomp.search.pareto import pareto_front

INK, MUTED, ACCENT, WARM = "#1c2430", "#8a94a3", "#1f6feb", "#d9480f"


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plots need matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(width, height), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _style(axes: Any, labels: int) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=labels)
    axes.grid(axis="y", color="#e6e9ee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(lambda value, _: si(value))


def si(value: float) -> str:
    """A number with an SI prefix, e.g. ``2.5 G``."""
    for limit, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


def pareto_plot(
    path: Path,
    records: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Any],
    *,
    cost_key: str,
    objective_key: str,
    maximize: bool,
    limit: float | None,
    cost_label: str,
    objective_label: str,
) -> None:
    """Draw every evaluated configuration, the front, the budget and the chosen one, and write it as PNG.

    Args:
        path: of the PNG file.
        records: ``{config_str, cost, metrics}`` of each configuration; one whose score is None (not finite) is not drawn.
        chosen: the record to point out.
        cost_key: which cost is on the x axis.
        objective_key: which score is on the y axis.
        maximize: whether a higher score is better.
        limit: the budget on the x axis, or None.
        cost_label: of the x axis.
        objective_label: of the y axis.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure = _figure(7.2, 4.2)
    axes = figure.add_subplot()
    _style(axes, 9)
    known = [record for record in records if record["metrics"][objective_key] is not None]
    points = [(record["cost"][cost_key], record["metrics"][objective_key]) for record in known]
    front = pareto_front([dict(record) for record in known], cost_key, objective_key, maximize)
    axes.scatter(*zip(*points, strict=True), s=20, color=MUTED, alpha=0.55, linewidths=0)
    edge = [(record["cost"][cost_key], record["metrics"][objective_key]) for record in front]
    axes.step(*zip(*edge, strict=True), where="post", color=ACCENT, linewidth=1.6)
    axes.scatter(*zip(*edge, strict=True), s=26, color=ACCENT, zorder=3, linewidths=0)
    x, y = chosen["cost"][cost_key], chosen["metrics"][objective_key]
    axes.scatter([x], [y], s=110, facecolors="none", edgecolors=WARM, linewidths=2, zorder=4)
    middle = (min(p[0] for p in points) + max(p[0] for p in points)) / 2
    axes.annotate(
        f"{chosen['config_str']}\n{si(x)}, {y:.4g}",
        (x, y),
        xytext=(-10 if x > middle else 10, -14 if maximize else 16),
        textcoords="offset points",
        ha="right" if x > middle else "left",
        color=WARM,
        fontsize=9,
    )
    if limit is not None:
        axes.axvline(limit, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"budget {si(limit)}", (limit, 1), xycoords=("data", "axes fraction"), xytext=(-4, -2),
            textcoords="offset points", rotation=90, ha="right", va="top", color=INK, fontsize=8,
        )  # fmt: skip
    # A score is named after its feature network's file, which is no formula.
    axes.set_xlabel(cost_label, color=INK, parse_math=False)
    axes.set_ylabel(objective_label, color=INK, parse_math=False)
    axes.margins(x=0.06, y=0.14)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")


Percentiles = tuple[float, float, float]
_SHADES = ("#c3cad4", "#8a94a3", "#5b6675", "#f0a884", "#d9480f", "#b8cdf0", "#a98fd8")


def bars_plot(path: Path, panels: Mapping[str, Mapping[str, Mapping[str, Percentiles]]], *, label: str) -> None:
    """Draw grouped horizontal bars, one panel below the other, and write them as PNG.

    Args:
        path: of the PNG file.
        panels: by title, by case, by contender (the last one is pointed out): lower, middle and upper percentile. The bar
            is the middle one, a line spans the other two.
        label: of the x axis, with its unit.

    Raises:
        ConfigError: nothing to draw, or matplotlib is not installed.
    """
    if not panels or not all(panels.values()):
        raise ConfigError("bars_plot: no measurement to draw")
    names = list(dict.fromkeys(name for cases in panels.values() for bars in cases.values() for name in bars))
    colours = {**dict(zip(names, itertools.cycle(_SHADES), strict=False)), names[-1]: ACCENT}
    sizes = [len(cases) for cases in panels.values()]
    figure = _figure(8.0, 0.9 * len(panels) + sum(sizes) * (0.1 + 0.12 * len(names)))
    all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[size + 1 for size in sizes])[:, 0]
    for axes, (title, cases) in zip(all_axes, panels.items(), strict=True):
        _grouped_bars(axes, title, cases, colours)
    all_axes[-1].set_xlabel(label, fontsize=9, color=INK)
    patches = [axes.barh(0, 0, color=colours[name], label=name) for name in names]
    figure.legend(handles=patches, loc="outside upper right", ncols=len(names), fontsize=8, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")


def _grouped_bars(axes: Any, title: str, cases: Mapping[str, Mapping[str, Percentiles]], colours: Mapping[str, str]) -> None:
    _style(axes, 8)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#e6e9ee", linewidth=0.8)
    names = list(colours)
    thickness = 0.8 / len(names)
    for row, bars in enumerate(cases.values()):
        for name, (low, middle, high) in bars.items():
            y = row + (names.index(name) - (len(names) - 1) / 2) * thickness
            axes.barh(y, middle, height=0.9 * thickness, color=colours[name])
            axes.plot((low, high), (y, y), color=INK, linewidth=0.8)
    axes.set_yticks(range(len(cases)), list(cases))
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_title(title, fontsize=10, color=INK, loc="left")


def bench_plot(path: Path, result: Mapping[str, Any]) -> None:
    """Draw the result of ``gancomp bench`` as PNG: milliseconds per image of each contender, and of each step of the engine.

    Args:
        path: of the PNG file.
        result: what :func:`gancomp.pipeline.bench.run_bench` returns.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    rows, steps = result["latency"], result["steps"]
    names = [*dict.fromkeys(row["contender"] for row in rows if row["contender"] != "engine"), "engine"]
    colours = {**dict(zip(names, _SHADES, strict=False)), "engine": ACCENT}
    cases: dict[str, dict[str, Percentiles]] = {}
    for row in rows:
        case = f"{row['threads']} thread{'s' * (row['threads'] > 1)}, batch {row['batch']}"
        each = (row["best"] / row["batch"], row["p50"] / row["batch"], row["p95"] / row["batch"])
        cases.setdefault(case, {})[row["contender"]] = each
    sizes = [len(cases) * len(names) * 0.6, len(steps["rows"])]
    figure = _figure(8.0, 1.6 + 0.22 * sum(sizes))
    top, bottom = figure.subplots(2, 1, height_ratios=[size + 2 for size in sizes])
    _grouped_bars(top, f"{result['model']} at {'x'.join(map(str, result['size']))}", cases, colours)
    top.set_xlabel("ms per image: median, best to 95 %", fontsize=9, color=INK)
    named = {f"{row['name']}  x{row['calls']}" if row["calls"] > 1 else row["name"]: row for row in steps["rows"]}
    bars = {name: {"engine": (row["ms"],) * 3} for name, row in named.items()}
    _grouped_bars(bottom, f"the engine's steps, {steps['threads']} threads, batch {steps['batch']}", bars, {"engine": ACCENT})
    for index, row in enumerate(steps["rows"]):
        words = (
            f"{row['gflops']:.0f} GFLOP/s, {row['share_of_peak']:.0%}"
            if row["macs"]
            else f"{row['gbytes_per_second']:.0f} GB/s"
        )
        bottom.annotate(
            words, (row["ms"], index), xytext=(4, 0), textcoords="offset points", va="center", color=MUTED, fontsize=7
        )
    bottom.margins(x=0.18)
    bottom.set_xlabel("ms, and the share of the machine's measured peak", fontsize=9, color=INK)
    patches = [top.barh(0, 0, color=colours[name], label=name) for name in names]
    figure.legend(handles=patches, loc="outside upper right", ncols=len(names), fontsize=8, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")


def sensitivity_plot(path: Path, result: Mapping[str, Any]) -> None:
    """Draw the result of ``gancomp sensitivity`` as PNG: the score of every variant against its MACs, and a bar for each.

    Args:
        path: of the PNG file.
        result: what :func:`gancomp.pipeline.sensitivity.run_sensitivity` returns; its first variant is the dense one.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    rows, key = result["variants"], result["objective"]["key"]
    better = "higher" if result["objective"]["maximize"] else "lower"
    names, scores = [row["variant"] for row in rows], [row["scores"][key] for row in rows]
    colours = [WARM, *[ACCENT] * (len(rows) - 1)]
    figure = _figure(10.0, 4.2)
    cloud, bars = figure.subplots(1, 2)
    for axes in (cloud, bars):
        _style(axes, 8)
    cloud.scatter([row["macs"] for row in rows], scores, s=34, color=colours, linewidths=0, zorder=3)
    # Neighbours have their names on different sides.
    for place, index in enumerate(sorted(range(len(rows)), key=lambda index: scores[index])):
        x, side = (-7, "right") if place % 2 else (7, "left")
        cloud.annotate(
            names[index], (rows[index]["macs"], scores[index]), xytext=(x, 0), textcoords="offset points", ha=side, va="center",
            color=INK, fontsize=8,
        )  # fmt: skip
    cloud.axhline(scores[0], color=WARM, linewidth=1, linestyle=(0, (4, 3)))
    cloud.margins(x=0.18, y=0.14)
    cloud.set_xlabel("multiply-accumulates per image", fontsize=9, color=INK)
    # A score is named after its feature network's file, which is no formula.
    cloud.set_ylabel(f"{key} on the validation split ({better} is better)", fontsize=9, color=INK, parse_math=False)
    bars.grid(axis="y", visible=False)
    bars.grid(axis="x", color="#e6e9ee", linewidth=0.8)
    bars.barh(range(len(rows)), scores, height=0.7, color=colours)
    bars.axvline(scores[0], color=WARM, linewidth=1, linestyle=(0, (4, 3)))
    bars.set_yticks(range(len(rows)), names)
    bars.set_ylim(len(rows) - 0.5, -0.5)
    bars.set_xlabel(f"{key}, one group decomposed", fontsize=9, color=INK, parse_math=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")


def curves_plot(series: Mapping[str, Sequence[tuple[int, float]]]) -> bytes:
    """Draw training losses over steps, one small panel each; returns PNG bytes.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure = _figure(2.6 * len(series), 2.1)
    for index, (name, points) in enumerate(series.items(), start=1):
        axes = figure.add_subplot(1, len(series), index)
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=ACCENT, linewidth=0.8, alpha=0.35)
        axes.plot(steps, _smooth(values), color=ACCENT, linewidth=1.6)
        axes.set_title(name, fontsize=10, color=INK, loc="left")
        _style(axes, 8)
        axes.locator_params(nbins=4)
        axes.set_xlabel("step", fontsize=8, color=MUTED)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def _smooth(values: Sequence[float]) -> list[float]:
    window = max(1, len(values) // 15)
    means = []
    for end in range(1, len(values) + 1):
        recent = values[max(0, end - window) : end]
        means.append(sum(recent) / len(recent))
    return means
