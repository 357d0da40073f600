"""Generators and discriminators, and the registry that rebuilds them from their files."""

from gancomp.models.base import Generator, Network, build_network, config_from_dict, register_network, seeded_generator
from gancomp.models.decomposed import DecomposedConfig, DecomposedResnet
from gancomp.models.discriminators import DiscriminatorConfig, MultiscaleConfig, MultiscaleDiscriminator, PatchDiscriminator
from gancomp.models.resnet import ResnetBlock, ResnetConfig, ResnetGenerator
from gancomp.models.sliced import ChannelsConfig, SlicedGenerator, register_generator
from gancomp.models.spade import SpadeConfig, SpadeGenerator
from gancomp.models.unet import UnetConfig, UnetGenerator

__all__ = [
    "ChannelsConfig",
    "DecomposedConfig",
    "DecomposedResnet",
    "DiscriminatorConfig",
    "Generator",
    "MultiscaleConfig",
    "MultiscaleDiscriminator",
    "Network",
    "PatchDiscriminator",
    "ResnetBlock",
    "ResnetConfig",
    "ResnetGenerator",
    "SlicedGenerator",
    "SpadeConfig",
    "SpadeGenerator",
    "UnetConfig",
    "UnetGenerator",
    "build_network",
    "config_from_dict",
    "register_generator",
    "register_network",
    "seeded_generator",
]
