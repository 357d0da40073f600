"""Reading networks from the files of this project and of others."""

from gancomp.checkpoints.foreign import convert_state
from gancomp.checkpoints.load import load_generator, load_network, load_supernet, metadata_json, read_metadata, read_weights

__all__ = ["convert_state", "load_generator", "load_network", "load_supernet", "metadata_json", "read_metadata", "read_weights"]
