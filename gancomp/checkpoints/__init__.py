"""Reading networks from the files of this project and of others."""

from gancomp.checkpoints.assume import PUBLISHED, Assumptions, ForeignNetwork
from gancomp.checkpoints.files import metadata_json, read_metadata, read_weights
from gancomp.checkpoints.foreign import convert_state
from gancomp.checkpoints.load import load_foreign, load_generator, load_network, load_subnetwork, load_supernet

__all__ = [
    "PUBLISHED",
    "Assumptions",
    "ForeignNetwork",
    "convert_state",
    "load_foreign",
    "load_generator",
    "load_network",
    "load_subnetwork",
    "load_supernet",
    "metadata_json",
    "read_metadata",
    "read_weights",
]
