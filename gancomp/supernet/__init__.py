"""Supernets, their search spaces, and how a student starts from its teacher."""

from gancomp.supernet.calibrate import calibrate
from gancomp.supernet.space import SPACES, SearchSpace
from gancomp.supernet.supernet import Supernet
from gancomp.supernet.transfer import transfer_weights

__all__ = ["SPACES", "SearchSpace", "Supernet", "calibrate", "transfer_weights"]
