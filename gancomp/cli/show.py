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
    elif verb == "search":
        best = result.best
        print(f"config_str {best['config_str']}")
        print("  ".join(f"{name} {_number(value)}" for name, value in {**best["cost"], **best["metrics"]}.items()))
        print(f"{len(result.records)} configurations evaluated; {Path(settings.out) / 'pareto.png'}")
    elif isinstance(result, Path):
        print(result)


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
    print(f"MACs published  {published}, transposed convolutions as the papers count them")


def _evaluate(settings: Any, result: dict[str, Any]) -> None:
    if settings.json:
        print(json.dumps(result))
        return
    for name, value in result["scores"].items():
        print(f"{name:20} {value:.4f}")
    protocol = result["protocol"]
    print(", ".join(f"{name} {value}" for name, value in protocol.items()))


def _number(value: float | None) -> str:
    if value is None:
        return "not finite"
    for limit, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.4g}"
