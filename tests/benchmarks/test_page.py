"""docs/performance.md is what the script writes from the committed results, and its tables say what the rows say."""

from __future__ import annotations

import string

import pytest
from PIL import Image

from benchmarks import page
from benchmarks.page import PAGE, PLOT, RESULTS, SECTIONS, TEMPLATE, Results
from benchmarks.schema import Row, write_rows
from gancomp.errors import ConfigError

ONE, EIGHT = "1x3x256x256", "8x3x256x256"


def row(kernel, provider, metric, value, *, x=ONE, config="", threads=2, mode="inference", unit=""):
    return Row(
        kernel=kernel, provider=provider, mode=mode, metric=metric, unit=unit, x=x, p20=value, p50=value, p80=value,
        config=config, device="A processor, 2 cores", threads=threads, versions="gancomp=1 torch=2", commit="abc",
        time="2026-01-02T03:04:05+00:00",
    )  # fmt: skip


def results():
    """One network on two threads: 1 G multiply-adds in 20 ms, where the machine does 200 GFLOP/s."""
    times = {"engine": 20.0, "eager": 100.0, "compile": 44.0, "compile-max": 30.0, "onnxruntime": 50.0, "openvino": 10.0}
    others = [name for name in times if name != "engine"]
    return [
        row("machine", "other processes", "load", 0.25, x=""),
        row("machine", "roofline", "f32", 200.0, x="avx512", mode="peak"),
        row("machine", "roofline", "cache", 100.0, x="avx512", mode="peak"),
        row("machine", "roofline", "memory", 10.0, x="avx512", mode="peak"),
        *(row("C1", name, "time", ms) for name, ms in times.items()),
        *(row("C1", "engine", "speedup", times[name] / 20, config=f"vs {name}") for name in others),
        *(row("C1", name, "error", 2e-6) for name in ("engine", "eager")),
        row("C1", "engine-int8", "time", 8.0),
        row("C1", "engine-int8", "speedup", 2.5, config="vs engine"),
        row("C1", "engine-int8", "psnr", 41.25, unit="dB"),
        row("C1", "engine-avx2", "absent", 0.0, config="this processor has no avx2"),
        row("C1", "engine", "time", 120.0, x=EIGHT),
        row("C1", "engine", "speedup", 1.25, x=EIGHT, config="vs one image at a time"),
        row("C1", "other processes", "load", 0.02),
        row("C1", "contest", "rounds", 9, config="run"),
        row("C1", "contest", "rounds", 8, config="used"),
        row("C1", "network", "macs", 1e9, config="random weights, embedded drawings"),
        *(
            row("C1", "engine", metric, value, x=name, config=f"{count} steps", mode="step")
            for name, count, values in (
                ("pointwise", 3, {"time": 12.0, "macs": 0.8e9, "bytes": 1e6}),
                ("copy", 1, {"time": 4.0, "macs": 0.2e9, "bytes": 300e6}),
            )
            for metric, value in values.items()
        ),
        row("C1", "engine", "start", 310.0, x="", mode="start", unit="ms"),
        row("C1", "engine", "memory", 44.0, x="", mode="start", unit="MB"),
    ]


def test_the_page_is_what_the_results_give():
    if not RESULTS.exists():
        pytest.skip("no results of `make bench-cpu` are committed yet")
    rows = page.measured_rows()
    assert PAGE.read_text(encoding="utf-8") == page.page(rows), "run `make docs-performance`"
    assert PLOT.stat().st_size < 200_000
    with Image.open(PLOT) as image:
        assert image.format == "PNG"


def test_every_section_is_in_the_template():
    names = string.Template(TEMPLATE.read_text(encoding="utf-8")).get_identifiers()
    assert sorted(names) == sorted(SECTIONS)


def section(name, rows=None):
    return SECTIONS[name](Results(rows if rows is not None else results()))


def test_times_and_ratios():
    assert "| `engine` | 20 (20) |" in section("times")
    assert "| `compile-max` | 30 (30) |" in section("times")
    ratios = section("ratios").splitlines()
    assert ratios[0] == "|  | `eager` | `compile` | `onnxruntime` | `openvino-f32` | share of peak |"
    cells = [
        "C1, 2 threads",
        "5x (target 4.5x)",
        "1.5x (target 2.5x, missed)",
        "2.5x (target 3x, missed)",
        "-",
        "50 % (target 50 %)",
    ]
    assert ratios[2] == f"| {' | '.join(cells)} |", "torch.compile is its faster mode; 2 GFLOP in 20 ms is half of 200 GFLOP/s"


def test_batches_and_variants():
    assert section("batches").splitlines()[-1] == "| C1, 2 threads | 15 | 1.25x |"
    assert section("variants").splitlines()[-1] == "| C1, 2 threads | - | 2.5x (target 2x) | 2.00x | 41.2 dB | - |"


def test_images_of_photographs():
    def photograph(metric, value, config):
        return row("C1", "engine-int8", metric, value, mode="photographs", config=config)

    of, worst = "of PyTorch's", "worst image"
    rows = [
        *(photograph("psnr", value, config) for value, config in ((41.0, of), (35.5, worst))),
        *(photograph("ssim", value, config) for value, config in ((0.98, of), (0.91, worst))),
        *(photograph("equal bytes", value, config) for value, config in ((40.0, of), (30.0, worst))),
        *(photograph("largest step", value, config) for value, config in ((9.0, of), (20.0, worst))),
        photograph("fd_random", 12.0, "to 9 images of the target domain"),
    ]
    lines = section("images", [*results(), *rows]).splitlines()
    assert lines[0].endswith("| `fd_random` |")
    assert lines[-1] == "| `engine-int8` | 40 | 20 | 41 (35.5) | 0.98 (0.91) | 12.0 |"
    assert section("times", [*results(), *rows]) == section("times"), "they are not contests"


def test_bounds_are_the_longer_of_arithmetic_and_memory():
    steps = {kind.name: kind.bound for kind in Results(results()).steps("C1", 2)}
    assert steps == pytest.approx({"pointwise": 8.0, "copy": 3.0})
    assert section("bounds").splitlines()[-1] == "| C1, 2 threads | 1.00 | 1.00 | 301 | 11 | 20 | 55 % |"
    table = section("steps").splitlines()
    assert table[0] == "### C1"
    assert table[4:] == ["| pointwise | 3 | 800 | 12.00 | 67 % | 0 |", "| copy | 1 | 200 | 4.00 | 50 % | 75 |"]


def test_what_is_missed_is_told_with_its_bound():
    lines = section("unflattering").splitlines()
    assert "- C1, 2 threads: 1.5x against `compile-max`, the target is 2.5x; at the bound of 11 ms it would be 2.73x." in lines
    assert "- C1, 2 threads, batch 1: `openvino` is faster, 2.00x." in lines
    assert "- C1, 2 threads: most is lost against the bound in `pointwise` 4.0 ms and `copy` 1.0 ms." in lines
    assert "- C1: start of a fresh process is 310 ms, the target is 300." in lines
    assert "- `engine-avx2` was not timed everywhere: this processor has no avx2." in lines
    assert not any("eager" in line or "int8" in line or "memory" in line for line in lines), "what is met is not listed"


def test_a_busy_machine_is_told():
    assert section("load").endswith("Other processes had less than a tenth of a processor in every contest (median).")
    busy = [row("C1", "other processes", "load", 0.8) if r.kernel == "C1" and r.metric == "load" else r for r in results()]
    assert "**The machine was busy" in section("load", busy)
    assert "C1, 2 threads, batch 1: 0.80 processors, 8 of 9 rounds used." in section("load", busy)


def test_conditions_and_sources():
    text = section("conditions")
    for fact in ("A processor, 2 cores", "gancomp 1 torch 2", "abc", "2026-01-02 03:04 to 03:04"):
        assert f"| {fact} |" in text
    assert section("sources") == "C1 random weights, embedded drawings"


def test_written_page_and_plot(monkeypatch, tmp_path):
    for name in ("RESULTS", "PHOTOGRAPHS", "PAGE", "PLOT"):
        monkeypatch.setattr(page, name, tmp_path / name)
    write_rows(tmp_path / "RESULTS", results())
    write_rows(tmp_path / "PHOTOGRAPHS", [])
    page.main([])
    text = (tmp_path / "PAGE").read_text()
    assert text == page.page(results())
    assert "$" not in text
    assert page.panels(results()) == {
        "2 threads": {
            "C1": {
                "eager": (5, 5, 5),
                "compile": (2.2, 2.2, 2.2),
                "compile-max": (1.5, 1.5, 1.5),
                "onnxruntime": (2.5, 2.5, 2.5),
                "engine": (1, 1, 1),
            }
        }
    }
    with Image.open(tmp_path / "PLOT") as image:
        assert image.format == "PNG"


def test_every_network_has_the_same_bars():
    rows = [*results(), row("C2", "engine", "time", 10.0)]
    rows += [row("C2", "engine", "speedup", 2.0, config="vs channels_last")]
    bars = page.panels(rows)["2 threads"]
    assert list(bars["C1"]) == list(bars["C2"]) == ["eager", "channels_last", "compile", "compile-max", "onnxruntime", "engine"]
    assert bars["C2"]["channels_last"] == (2, 2, 2)
    assert bars["C1"]["channels_last"] == (0, 0, 0)


def test_nothing_measured_is_no_page():
    with pytest.raises(ConfigError, match="no network was timed"):
        page.page(results()[:4])
    with pytest.raises(ConfigError, match="usage"):
        page.main(["x"])
