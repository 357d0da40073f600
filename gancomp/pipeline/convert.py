"""``gancomp convert``: a network of another project as one self-describing file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from gancomp.checkpoints import Assumptions, load_foreign
from gancomp.errors import ConfigError
from gancomp.models import SlicedGenerator
from gancomp.pipeline.settings import check_weights_name, provenance
from gancomp.supernet import SearchSpace, Supernet


@dataclass(frozen=True)
class ConvertRun:
    """Convert a network of another project into one `.safetensors` file that carries its configuration.

    Architecture, widths, blocks, norm and dropout layers are read from names and shapes of the tensors. The verbs take foreign
    files as they are, too; converting one says what it is, and settles once what its tensors cannot tell.
    """

    source: Positional[str]
    """A generator or discriminator of pytorch-CycleGAN-and-pix2pix, GAN Compression or SPADE, such as `latest_net_G.pth`."""
    out: Positional[str]
    """The file to write, ending in `.safetensors`."""
    space: str = ""
    """The search space of a published supernet, such as `channels-48`; with it the file is a supernet to search in."""
    direction: Literal["AtoB", "BtoA"] = "AtoB"
    """Which side of a pair it was trained on; kept in the file for its reader, `--data.direction` is what sets it in a run."""
    assume: Assumptions = field(default_factory=Assumptions)


@dataclass(frozen=True)
class Converted:
    """The file written, and what its source was recognised as."""

    path: Path
    found: str


def run_convert(run: ConvertRun) -> Converted:
    """Convert the file.

    Raises:
        ConfigError: a name of another ending, or a search space that is not that of the file's network.
        CheckpointError: the file cannot be used, or holds a network of no known layout.
    """
    check_weights_name(run.out)
    network, found = load_foreign(run.source, run.assume)
    record = {**provenance("convert", run, source=Path(run.source)), "found": found}
    if run.space:
        if not isinstance(network, SlicedGenerator):
            raise ConfigError(
                f"space={run.space!r}: {run.source} holds a {network.arch!r} network, of which there is no supernet"
            )
        space = SearchSpace.parse(run.space, slots=network.config.slots, arch=network.arch)
        Supernet.around(network, space).save(run.out, record)
    else:
        network.save(run.out, record)
    return Converted(Path(run.out), found)
