"""Modules that hold the full weight and a width."""

from gancomp.nn.conv import (
    SeparableConv2d,
    SlicedConv2d,
    SlicedConvTranspose2d,
    SlicedDepthwiseConv2d,
    WinogradConv2d,
    init_weights,
)
from gancomp.nn.norm import BatchNormAct, InstanceNormAct, NoNormAct, make_norm

__all__ = [
    "BatchNormAct",
    "InstanceNormAct",
    "NoNormAct",
    "SeparableConv2d",
    "SlicedConv2d",
    "SlicedConvTranspose2d",
    "SlicedDepthwiseConv2d",
    "WinogradConv2d",
    "init_weights",
    "make_norm",
]
