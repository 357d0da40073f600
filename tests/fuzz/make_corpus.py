"""Writes the seeds of the fuzz target: a small file of every kind of generator that the engine reads.

Run from anywhere: ``python tests/fuzz/make_corpus.py``. The files are committed, so that a fuzzer needs no Python.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gancomp.checkpoints import read_metadata
from gancomp.models import Generator, ResnetConfig, ResnetGenerator, SpadeConfig, SpadeGenerator, UnetConfig, UnetGenerator

FOLDER = Path(__file__).resolve().parent / "corpus"


def resnet(**fields: object) -> ResnetGenerator:
    """A ResNet generator with one or two channels everywhere."""
    config = {"stem": 1, "down": 2, "stream": 1, "hidden": (2,), "up": 1, "last": 1, "in_channels": 1, "out_channels": 1}
    return ResnetGenerator(ResnetConfig(**config | fields))


def spade(**fields: object) -> SpadeGenerator:
    """A SPADE generator with one or two channels everywhere."""
    config = {"stream": 1, "inner": (1, 2, 1), "up": (2, 1, 1, 1), "embed": (1, 2, 1, 1, 1, 1, 1), "label_nc": 2}
    return SpadeGenerator(SpadeConfig(**config | {"out_channels": 1, "upsampling": "normal"} | fields))


def main() -> None:
    """Write every seed anew."""
    torch.manual_seed(0)
    FOLDER.mkdir(exist_ok=True)
    networks: dict[str, Generator] = {
        "resnet": resnet(),
        "resnet_separable": resnet(separable=True, padding="replicate"),
        "resnet_batch": resnet(norm="batch", padding="zero"),
        "resnet_affine": resnet(norm="instance_affine", hidden=()),
        "unet": UnetGenerator(UnetConfig(ngf=1, n_levels=5, in_channels=1, out_channels=1, norm="batch")),
        "spade": spade(norm="instance", instance_edges=False),
        "spade_separable": spade(separable=True),
    }
    for name, network in networks.items():
        network.save(FOLDER / f"{name}.safetensors")
    for dtype in (torch.float16, torch.bfloat16):
        tensors = {key: tensor.to(dtype) for key, tensor in load_file(FOLDER / "resnet.safetensors").items()}
        name = str(dtype).removeprefix("torch.")
        save_file(tensors, FOLDER / f"resnet_{name}.safetensors", read_metadata(FOLDER / "resnet.safetensors"))


if __name__ == "__main__":
    main()
