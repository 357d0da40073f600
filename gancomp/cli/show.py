"""What each verb prints when it is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def show(verb: str, settings: Any, result: Any) -> None:
    """Print the result of a verb."""
    if verb == "profile":
        _profile(settings, result)
    elif verb == "evaluate":
        _evaluate(settings, result)
    elif verb == "bench":
        _bench(settings, result)
    elif verb == "sensitivity":
        from gancomp.pipeline.sensitivity import sensitivity_table

        print(sensitivity_table(result))
        print(Path(settings.out) / "sensitivity.json")
    elif verb == "search":
        best = result.best
        print(f"config_str {best['config_str']}")
        print("  ".join(f"{name} {_number(value)}" for name, value in {**best["cost"], **best["metrics"]}.items()))
        print(f"{len(result.records)} configurations evaluated; {Path(settings.out) / 'pareto.png'}")
        if broken := sum("note" in record for record in result.records):
            print(f"{broken} of them are not finite, see {Path(settings.out) / 'results.jsonl'}")
    elif verb == "convert":
        print(result.found)
        print(result.path)
    elif isinstance(result, Path):
        print(result)
    elif verb == "data":
        print(*result, sep="\n")


def _profile(settings: Any, profile: Any) -> None:
    summary = {"params": profile.params, "macs": profile.macs, "macs_published": profile.macs_published}
    layers = [
        {"name": layer.name, "kind": layer.kind, "out_shape": list(layer.out_shape), "params": layer.params, "macs": layer.macs}
        for layer in profile.layers
    ]
    if settings.json:
        print(json.dumps({**summary, "layers": layers} if settings.layers else summary))
        return
    if settings.layers:
        for layer in layers:
            shape, macs = str(layer["out_shape"]), _number(layer["macs"])
            print(f"{layer['name']:32} {layer['kind']:22} {shape:22} {layer['params']:>10} {macs:>9}")
    print(f"parameters      {profile.params:,}")
    print(f"MACs            {profile.macs:,} ({_number(profile.macs)})")
    published = f"{profile.macs_published:,} ({_number(profile.macs_published)})"
    print(f"MACs published  {published}, transposed convolutions as the papers count them{', and norms' * settings.count_norm}")


def _evaluate(settings: Any, result: dict[str, Any]) -> None:
    if settings.json:
        print(json.dumps(result))
        return
    for name, value in result["scores"].items():
        print(f"{name:20} {value:.4f}")
    protocol = result["protocol"]
    print(", ".join(f"{name} {value}" for name, value in protocol.items()))


def _bench(settings: Any, result: dict[str, Any]) -> None:
    if settings.json:
        print(json.dumps(result))
        return
    height, width = result["size"]
    print(f"{result['model']}: {result['parameters']:,} parameters, {_number(result['macs'])} MACs at {height}x{width}")
    print(f"{result['hardware']['processor']}, {result['isa']} kernels")
    for name, found in result["checks"].items():
        print(f"checked: {name} {found}")
    print(f"\n{'threads':>7} {'batch':>5}  {'':14}{'p50 ms':>9}{'p95 ms':>9}{'best ms':>9}{'images/s':>10}{'x eager':>9}")
    for row in result["latency"]:
        print(
            f"{row['threads']:>7} {row['batch']:>5}  {row['contender']:14}{row['p50']:9.2f}{row['p95']:9.2f}{row['best']:9.2f}"
            f"{row['images_per_second']:10.1f}{row['times_eager']:9.2f}"
        )
    steps = result["steps"]
    heading = f"engine, {steps['threads']} threads"
    print(f"\n{heading:32}{'calls':>5}{'ms':>8}{'time':>6}{'MACs':>9}{'GFLOP/s':>9}{'peak':>6}{'GB/s':>7}")
    for row in steps["rows"]:
        print(
            f"{row['name']:32}{row['calls']:>5}{row['ms']:8.2f}{row['share_of_time']:6.0%}{_number(row['macs']):>9}"
            f"{row['gflops']:9.1f}{row['share_of_peak']:6.0%}{row['gbytes_per_second']:7.1f}"
        )
    for most in result["roofline"]:
        print(
            f"at most, {most['threads']} thread{'s' * (most['threads'] > 1)}: {most['flops'] / 1e9:.0f} GFLOP/s; "
            f"copies {most['cache_bytes'] / 1e9:.0f} GB/s in cache, {most['memory_bytes'] / 1e9:.0f} GB/s in memory"
        )
    for note in result["notes"]:
        print(note)
    if settings.out:
        print(Path(settings.out) / "bench.json")


def _number(value: float | None) -> str:
    if value is None:
        return "not finite"
    for limit, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.4g}"
