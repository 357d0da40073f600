"""docs/performance.md and its plot, written from a results file: `python -m benchmarks.page`.

The text is in performance.md.in; every table is a function here.
"""

from __future__ import annotations

import string
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from benchmarks.cases import NETS
from benchmarks.cpu import BATCH, OURS, threads_text
from benchmarks.peers import PEERS
from benchmarks.schema import Row, read_rows
from gancomp.errors import ConfigError
from gancomp.io import write_text
from gancomp.report.plots import Percentiles, bars_plot

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/cpu.csv"
PHOTOGRAPHS = ROOT / "benchmarks/results/photographs.csv"
PAGE = ROOT / "docs/performance.md"
PLOT = ROOT / "docs/images/cpu.png"
TEMPLATE = Path(__file__).with_name("performance.md.in")

RIVALS = ("eager", "compile", "onnxruntime", "openvino-f32")
"""Whom the targets name; ``compile`` is the faster mode of torch.compile."""
TARGETS = {
    "C1": {"eager": 4.5, "compile": 2.5, "onnxruntime": 3.0, "openvino-f32": 1.6, "share": 50.0},
    "C2": {"eager": 4.0, "compile": 2.2, "onnxruntime": 2.5, "openvino-f32": 1.5, "share": 55.0},
    "mobile": {"eager": 2.8, "compile": 1.8, "onnxruntime": 2.2, "openvino-f32": 1.5, "share": 60.0},
    "teacher": {"eager": 2.0, "compile": 1.8, "onnxruntime": 1.9, "openvino-f32": 1.8},
}
VARIANT_TARGETS = {"engine-avx2": 0.5, "engine-int8": 2.0}
START_MS, START_MB = 300.0, 120.0
_COMPILED = ("compile", "compile-max")


class Results:
    """The rows of a run, to be asked for."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.photographs = [row for row in rows if row.mode == "photographs"]
        self.rows = [row for row in rows if row.mode != "photographs"]
        self.threads = sorted({row.threads for row in rows if row.metric == "time"})
        measured = {row.kernel for row in rows}
        self.nets = [net for net in NETS if net in measured]

    def all(self, **wanted: object) -> list[Row]:
        """The rows whose fields have these values."""
        return [row for row in self.rows if all(getattr(row, name) == value for name, value in wanted.items())]

    def one(self, **wanted: object) -> Row | None:
        """The row, or None where it was not measured."""
        return next(iter(self.all(**wanted)), None)

    def time(self, net: str, peer: str, threads: int, batch: int = 1) -> Row | None:
        """The time of a call."""
        return self.one(kernel=net, provider=peer, threads=threads, metric="time", x=_size(batch))

    def ratio(self, net: str, peer: str, threads: int, batch: int = 1, of: str = OURS) -> Row | None:
        """How many times as long a peer takes as the engine; with ``of``, how many times as long the engine takes as ``of``."""
        versus = peer if of == OURS else OURS
        return self.one(kernel=net, provider=of, threads=threads, metric="speedup", x=_size(batch), config=f"vs {versus}")

    def compiled(self, net: str, threads: int) -> str:
        """The faster mode of torch.compile."""
        modes = {mode: row.p50 for mode in _COMPILED if (row := self.time(net, mode, threads))}
        return min(modes, key=lambda mode: modes[mode], default=_COMPILED[0])

    def rival(self, net: str, rival: str, threads: int) -> str:
        """The peer that a name of ``RIVALS`` stands for."""
        return self.compiled(net, threads) if rival == "compile" else rival

    def macs(self, net: str) -> float:
        """Of the network, per image, as it defines them."""
        row = self.one(kernel=net, metric="macs", provider="network")
        return row.p50 if row else 0.0

    def peak(self, metric: str, threads: int, isa: int = 0) -> float:
        """A peak rate in G/s, by the number of the instruction set in its order of measurement: 0 is the engine's own."""
        rows = self.all(kernel="machine", mode="peak", metric=metric, threads=threads)
        return rows[isa].p50 if isa < len(rows) else 0.0

    def steps(self, net: str, threads: int) -> list[Steps]:
        """The engine's steps by kind, those that take longest first."""
        kinds = []
        for row in self.all(kernel=net, mode="step", metric="time", threads=threads):
            same = {"kernel": net, "mode": "step", "x": row.x}
            macs, moved = (self.all(metric=metric, **same)[0].p50 for metric in ("macs", "bytes"))
            bound = max(_over(2 * macs, self.peak("f32", threads)), _over(moved, self.peak("cache", threads)))
            kinds.append(Steps(row.x, int(row.config.split()[0]), row.p50, macs, moved, bound))
        return sorted(kinds, key=lambda steps: -steps.ms)

    def bound(self, net: str, threads: int) -> float:
        """Milliseconds that the steps of the engine must take together on this machine."""
        return sum(steps.bound for steps in self.steps(net, threads))

    def share(self, net: str, threads: int) -> float | None:
        """Per cent of the peak rate at which the engine does what the network defines."""
        time = self.time(net, OURS, threads)
        peak = self.peak("f32", threads)
        return 100 * 2 * self.macs(net) / (time.p50 * 1e6 * peak) if time and peak and self.macs(net) else None


@dataclass(frozen=True)
class Steps:
    """All steps of one kind in a network: number, milliseconds, multiply-adds done, bytes, and the least ms they can take."""

    name: str
    count: int
    ms: float
    macs: float
    moved: float
    bound: float


def _size(batch: int) -> str:
    return f"{batch}x3x256x256"


def _over(amount: float, rate: float) -> float:
    """Milliseconds for an amount at a rate in G/s."""
    return amount / rate / 1e6 if rate else 0.0


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) if len(lines) > 2 else "Not measured in this run."


def conditions(results: Results) -> str:
    """Machine, versions, commit, times."""
    rows = results.rows
    devices, versions, commits = ({getattr(row, name) for row in rows} for name in ("device", "versions", "commit"))
    moments = sorted(row.time for row in rows)
    facts = {
        "processor": "; ".join(sorted(devices)),
        "versions": ", ".join(sorted(versions)).replace("=", " "),
        "commit": ", ".join(sorted(commits)),
        "time (UTC)": f"{moments[0][:16]} to {moments[-1][11:16]}".replace("T", " "),
    }
    return table(["", ""], [[name, value] for name, value in facts.items()])


def load(results: Results) -> str:
    """Whether the machine was quiet."""
    before = results.one(kernel="machine", metric="load")
    lines = [f"Load average in the minute before the run: {before.p50:.2f}."] if before else []
    busy = []
    for net, threads, batch in product(results.nets, results.threads, (1, BATCH)):
        where = {"kernel": net, "threads": threads, "x": _size(batch)}
        foreign = results.one(metric="load", **where)
        run, used = (results.one(metric="rounds", config=config, **where) for config in ("run", "used"))
        if foreign and run and used and foreign.p50 >= 0.1:
            rounds = f"{used.p50:.0f} of {run.p50:.0f} rounds used"
            busy.append(f"{net}, {threads_text(threads)}, batch {batch}: {foreign.p50:.2f} processors, {rounds}")
    if busy:
        lines.append(
            "**The machine was busy with other processes** (median of the processors that they had during slices), "
            "so times are too long and ratios uncertain: " + "; ".join(busy) + "."
        )
    else:
        lines.append("Other processes had less than a tenth of a processor in every contest (median).")
    return " ".join(lines)


def sources(results: Results) -> str:
    """Weights and images of every network."""
    rows = results.all(metric="macs", provider="network")
    return "; ".join(f"{row.kernel} {row.config}" for row in rows)


def peers(results: Results) -> str:
    """Everybody's definition; for those that were not timed everywhere, why."""
    rows = []
    for peer in PEERS.values():
        reasons = sorted({row.config for row in results.all(provider=peer.name, metric="absent")})
        rows.append([f"`{peer.name}`", peer.definition, "; ".join(reasons)])
    return table(["name", "what is run", "not timed because"], rows)


def times(results: Results) -> str:
    """Milliseconds of every peer."""
    tables = []
    for threads in results.threads:
        rows = []
        for peer in PEERS:
            cells = [results.time(net, peer, threads) for net in results.nets]
            if any(cells):
                rows.append([f"`{peer}`", *(f"{number(row.p50)} ({number(row.p20)})" if row else "-" for row in cells)])
        tables.append(f"{threads_text(threads).capitalize()}:\n\n" + table(["", *results.nets], rows))
    return "\n\n".join(tables)


def _against(value: float | None, target: float | None, unit: str) -> str:
    if value is None:
        return "-"
    mark = "" if target is None else f" (target {target:g}{unit}{'' if value >= target else ', missed'})"
    return f"{number(value)}{unit}{mark}"


def ratios(results: Results) -> str:
    """Paired ratios against the targets."""
    rows = []
    for threads, net in product(results.threads, results.nets):
        cells = []
        for rival in RIVALS:
            row = results.ratio(net, results.rival(net, rival, threads), threads)
            cells.append(_against(row.p50 if row else None, TARGETS[net][rival], "x"))
        cells.append(_against(results.share(net, threads), TARGETS[net].get("share"), " %"))
        rows.append([f"{net}, {threads_text(threads)}", *cells])
    return table(["", *(f"`{rival}`" for rival in RIVALS), "share of peak"], rows)


def batches(results: Results) -> str:
    """Milliseconds per image in batches."""
    peers_of = [
        peer for peer in PEERS if any(results.time(net, peer, t, BATCH) for net in results.nets for t in results.threads)
    ]
    rows = []
    for threads, net in product(results.threads, results.nets):
        measured = [results.time(net, peer, threads, BATCH) for peer in peers_of]
        if any(measured):
            gain = results.one(kernel=net, threads=threads, metric="speedup", config="vs one image at a time")
            cells = [number(row.p50 / BATCH) if row else "-" for row in measured]
            rows.append([f"{net}, {threads_text(threads)}", *cells, f"{gain.p50:.2f}x" if gain else "-"])
    return table(["", *(f"`{peer}`" for peer in peers_of), "against one by one"], rows)


def variants(results: Results) -> str:
    """AVX2, 8 bits, and a runtime that chooses its precision."""
    rows = []
    for threads, net in product(results.threads, results.nets):
        cells = []
        for variant, target in VARIANT_TARGETS.items():
            row = results.ratio(net, OURS, threads, of=variant)
            cells.append(_against(row.p50 if row else None, target, "x"))
        row = results.ratio(net, "openvino", threads)
        cells.append(f"{1 / row.p50:.2f}x" if row else "-")
        quality = [results.one(kernel=net, provider=peer, metric="psnr", x=_size(1)) for peer in ("engine-int8", "openvino")]
        cells += [f"{row.p50:.1f} dB" if row else "-" for row in quality]
        rows.append([f"{net}, {threads_text(threads)}", *cells])
    return table(
        ["", *(f"`{name}`" for name in VARIANT_TARGETS), "`openvino`", "PSNR of `engine-int8`", "PSNR of `openvino`"], rows
    )


def images(results: Results) -> str:
    """What the engine changes in the images of real photographs."""
    measured = {(row.provider, row.metric, row.config): row.p50 for row in results.photographs}

    def cell(provider: str, metric: str, config: str = "") -> str:
        found = [value for (who, what, how), value in measured.items() if (who, what) == (provider, metric) and config in how]
        return number(found[0]) if found else "-"

    distances = {row.metric for row in results.photographs if row.metric.startswith("fd_")}
    far = {(row.provider, row.metric): f"{row.p50:.1f}" for row in results.photographs}
    rows = [
        [
            f"`{provider}`",
            cell(provider, "equal bytes", "PyTorch"),
            cell(provider, "largest step", "worst"),
            f"{cell(provider, 'psnr', 'PyTorch')} ({cell(provider, 'psnr', 'worst')})",
            f"{cell(provider, 'ssim', 'PyTorch')} ({cell(provider, 'ssim', 'worst')})",
            *(far.get((provider, distance), "-") for distance in sorted(distances)),
        ]
        for provider in dict.fromkeys(row.provider for row in results.photographs)
    ]
    head = ["", "bytes equal to PyTorch's, %", "largest difference of a byte", "PSNR, dB (worst image)", "SSIM (worst image)"]
    return table([*head, *(f"`{distance}`" for distance in sorted(distances))], rows)


def errors(results: Results) -> str:
    """Largest errors."""
    rows = []
    for peer in PEERS:
        cells = [results.one(kernel=net, provider=peer, metric="error", x=_size(1)) for net in results.nets]
        if any(cells):
            rows.append([f"`{peer}`", *(f"{row.p50:.1e}" if row else "-" for row in cells)])
    return table(["", *results.nets], rows)


def peaks(results: Results) -> str:
    """The measured peak rates."""
    rows = []
    for threads in results.threads:
        found = results.all(kernel="machine", mode="peak", threads=threads)
        for isa in dict.fromkeys(row.x for row in found):
            rate = {row.metric: row.p50 for row in found if row.x == isa}
            rows.append([threads_text(threads), isa, *(number(rate[name]) for name in ("f32", "cache", "memory"))])
    return table(["", "instruction set", "float32, GFLOP/s", "copy in L2, GB/s", "copy in memory, GB/s"], rows)


def bounds(results: Results) -> str:
    """What every network needs and what it takes."""
    rows = []
    for threads, net in product(results.threads, results.nets):
        steps, time = results.steps(net, threads), results.time(net, OURS, threads)
        if steps and time:
            bound = results.bound(net, threads)
            rows.append(
                [
                    f"{net}, {threads_text(threads)}",
                    f"{results.macs(net) / 1e9:.2f}",
                    f"{sum(kind.macs for kind in steps) / 1e9:.2f}",
                    f"{sum(kind.moved for kind in steps) / 1e6:.0f}",
                    number(bound),
                    number(time.p50),
                    f"{100 * bound / time.p50:.0f} %",
                ]
            )
    return table(["", "GMAC defined", "GMAC done", "MB", "bound, ms", "engine, ms", "share of the bound"], rows)


def steps(results: Results) -> str:
    """A table of every network's kinds of steps."""
    sections = []
    for net in results.nets:
        measured = {threads: {kind.name: kind for kind in results.steps(net, threads)} for threads in results.threads}
        most = results.threads[-1]
        rows = []
        for name, kind in measured[most].items():
            cells = [name, str(kind.count), f"{kind.macs / 1e6:.0f}"]
            for threads in results.threads:
                ms = measured[threads][name].ms
                share = 100 * _over(2 * kind.macs, results.peak("f32", threads)) / ms if ms else 0.0
                cells += [f"{ms:.2f}", f"{share:.0f} %", f"{kind.moved / ms / 1e6:.0f}" if ms else "-"]
            rows.append(cells)
        head = ["step", "number", "MMAC"]
        for threads in results.threads:
            head += [f"ms, {threads_text(threads)}", "share", "GB/s"]
        sections.append(f"### {net}\n\n" + table(head, rows))
    return "\n\n".join(sections)


def starts(results: Results) -> str:
    """Start-up times and memory."""
    rows = []
    for row in results.all(mode="start", metric="start"):
        memory = results.one(mode="start", metric="memory", provider=row.provider)
        rows.append([f"`{row.provider}`", number(row.p50), number(memory.p50) if memory else "-"])
    return table(["", "ms", "peak memory, MB"], rows)


def unflattering(results: Results) -> str:
    """Every target that is missed and everybody who is faster, with what the machine would allow."""
    lines = []
    for net, threads in product(results.nets, results.threads):
        where = f"{net}, {threads_text(threads)}"
        bound = results.bound(net, threads)
        for rival in RIVALS:
            peer = results.rival(net, rival, threads)
            row, time = results.ratio(net, peer, threads), results.time(net, peer, threads)
            if row and time and row.p50 < TARGETS[net][rival]:
                most = f"; at the bound of {number(bound)} ms it would be {number(time.p50 / bound)}x" if bound else ""
                lines.append(f"{where}: {number(row.p50)}x against `{peer}`, the target is {TARGETS[net][rival]:g}x{most}.")
        share, wanted = results.share(net, threads), TARGETS[net].get("share")
        if share is not None and wanted is not None and share < wanted:
            lines.append(f"{where}: {number(share)} % of the multiply-add peak, the target is {wanted:g} %.")
        for variant, target in VARIANT_TARGETS.items():
            row = results.ratio(net, OURS, threads, of=variant)
            if row and row.p50 < target:
                lines.append(f"{where}: `{variant}` has {row.p50:.2f}x the speed of `{OURS}`, the target is {target:g}x.")
        for peer, batch in product(PEERS, (1, BATCH)):
            row = None if peer.startswith(OURS) else results.ratio(net, peer, threads, batch)
            if row and row.p50 < 1:
                lines.append(f"{where}, batch {batch}: `{peer}` is faster, {1 / row.p50:.2f}x.")
        gain = results.one(kernel=net, threads=threads, metric="speedup", config="vs one image at a time")
        if gain and gain.p50 < 1:
            lines.append(f"{where}: a batch of {BATCH} gives {gain.p50:.2f}x the images per second of one by one.")
        if threads > 1 and (one := results.time(net, OURS, 1)) and (more := results.time(net, OURS, threads)):
            lines.append(f"{net}: {threads_text(threads)} are {one.p50 / more.p50:.2f}x as fast as one.")
        slow = sorted(results.steps(net, threads), key=lambda kind: kind.bound - kind.ms)[:2]
        lost = [f"`{kind.name}` {kind.ms - kind.bound:.1f} ms" for kind in slow if kind.ms > kind.bound]
        if lost:
            lines.append(f"{where}: most is lost against the bound in {' and '.join(lost)}.")
    for row in results.all(mode="start", provider=OURS):
        limit = START_MS if row.metric == "start" else START_MB
        if row.p50 > limit:
            lines.append(
                f"{row.kernel}: {row.metric} of a fresh process is {number(row.p50)} {row.unit}, the target is {limit:g}."
            )
    for peer in PEERS:
        reasons = {row.config for row in results.all(provider=peer, metric="absent")}
        lines += [f"`{peer}` was not timed everywhere: {reason}." for reason in sorted(reasons)]
    return "\n".join(f"- {line}" for line in lines) or "Nothing was missed in this run."


SECTIONS: dict[str, Callable[[Results], str]] = {
    function.__name__: function
    for function in (
        conditions, load, sources, peers, times, ratios, batches, variants, images, errors, peaks, bounds, steps, starts,
        unflattering,
    )
}  # fmt: skip
"""What the names in the template stand for."""


def page(rows: Sequence[Row]) -> str:
    """The text of the page.

    Raises:
        ConfigError: nothing was timed.
    """
    results = Results(rows)
    if not results.threads:
        raise ConfigError("no network was timed in these results")
    template = string.Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute({name: section(results) for name, section in SECTIONS.items()})


def panels(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Percentiles]]]:
    """How many times as long as the engine every float32 peer takes: by threads, by network, by peer, the engine last."""
    results = Results(rows)
    contests = list(product(results.threads, results.nets))
    timed = [
        name
        for name, peer in PEERS.items()
        if peer.measure == "stock" and any(results.ratio(net, name, t) for t, net in contests)
    ]
    drawn: dict[str, dict[str, dict[str, Percentiles]]] = {}
    for threads, net in contests:
        # Who is missing in a contest keeps his place, with no bar.
        measured = {name: results.ratio(net, name, threads) for name in timed}
        bars = {name: (row.p20, row.p50, row.p80) if row else (0.0, 0.0, 0.0) for name, row in measured.items()}
        drawn.setdefault(threads_text(threads), {})[net] = {**bars, OURS: (1.0, 1.0, 1.0)}
    return drawn


def measured_rows() -> list[Row]:
    """The committed results: of the contests, and of the photographs."""
    return [*read_rows(RESULTS), *read_rows(PHOTOGRAPHS)]


def main(arguments: Sequence[str]) -> None:
    """Write the page and the plot.

    Raises:
        ConfigError: arguments were given.
    """
    if arguments:
        raise ConfigError("usage: python -m benchmarks.page")
    rows = measured_rows()
    bars_plot(PLOT, panels(rows), label="time over that of the engine, float32, one image, paired, median and 20-80 %")
    write_text(PAGE, page(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
