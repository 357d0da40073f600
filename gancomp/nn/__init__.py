"""Modules that hold the full weight and a width."""

from gancomp.nn.conv import (
    SeparableConv2d,
    SlicedConv2d,
    SlicedConvTranspose2d,
    SlicedDepthwiseConv2d,
    WinogradConv2d,
    init_weights,
)
from gancomp.nn.labels import LabelConv2d, instance_edges, label_taps, one_hot_labels
from gancomp.nn.norm import BatchNormAct, InstanceNormAct, ModulatedNorm, NoNormAct, make_norm

__all__ = [
    "BatchNormAct",
    "InstanceNormAct",
    "LabelConv2d",
    "ModulatedNorm",
    "NoNormAct",
    "SeparableConv2d",
    "SlicedConv2d",
    "SlicedConvTranspose2d",
    "SlicedDepthwiseConv2d",
    "WinogradConv2d",
    "init_weights",
    "instance_edges",
    "label_taps",
    "make_norm",
    "one_hot_labels",
]
