"""Training needs torch, numpy, Pillow, safetensors, PyYAML and tqdm: nothing else may be imported on its way."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import importlib.abc, importlib.metadata, re, sys
from pathlib import Path
import torch
import torch._dynamo  # loaded by optimizers

allowed = {"torch", "torchgen", "functorch", "gancomp", "triton", "numpy", "PIL", "safetensors", "yaml", "_yaml", "tqdm"}
# What torch brings and imports when it likes.
pending = ["torch"]
while pending:
    for requirement in importlib.metadata.requires(pending.pop()) or []:
        name = re.match(r"[A-Za-z0-9_.-]+", requirement)[0]
        top = {"jinja2": "jinja2"}.get(name.lower(), name.replace("-", "_").lower())
        if "extra ==" in requirement or top in allowed:
            continue
        allowed.add(top)
        try:
            importlib.metadata.distribution(name)
            pending.append(name)
        except importlib.metadata.PackageNotFoundError:
            pass

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in allowed or top in sys.stdlib_module_names or top in sys.modules or top.startswith("_"):
            return None
        raise ImportError(f"{name} is not on a bare machine")

sys.meta_path.insert(0, Refuse())

from gancomp.data import DataConfig, open_dataset
from gancomp.models import ResnetConfig, ResnetGenerator
from gancomp.supernet import SearchSpace, Supernet
from gancomp.train import DistillOptions, DistillStage, StageFolder, fit
import gancomp.train.graphs

data = DataConfig(load_size=36, crop_size=32, synthetic_train=4, synthetic_test=2)
train, val = open_dataset(data, "train"), open_dataset(data, "val")
options = DistillOptions(steps=2, batch_size=2, ndf=2, d_layers=1, device="cpu", ema=0.5)
stage = DistillStage(Supernet(SearchSpace.parse("4,2", 7), 2), ResnetGenerator(ResnetConfig.uniform(3, 2)), options)
folder = StageFolder(sys.argv[1])
folder.open({"verb": "supernet"})
assert fit(stage, train, val, folder, {}, progress=True)
assert (Path(sys.argv[1]) / "supernet.safetensors").exists()
for name in ("tyro", "optuna", "matplotlib", "tensorboard", "scipy"):
    assert name not in sys.modules, name
    try:
        __import__(name)
    except ImportError as error:
        assert "bare machine" in str(error)
"""


def test_a_supernet_trains_without_optional_packages(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
