"""GauGAN: a SPADE generator against a discriminator of several scales, from scratch and under a teacher.

Sources: Park et al. 2019, section 3 and appendix A (hinge loss, feature matching, perceptual loss, two time-scale update rule);
feature matching is that of pix2pixHD (Wang et al. 2018, equation 4); GAN Compression, section 4.1, for distillation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gancomp.errors import ConfigError
from gancomp.models import Generator, MultiscaleConfig, MultiscaleDiscriminator, SpadeGenerator, seeded_generator
from gancomp.nn import init_weights, one_hot_labels
from gancomp.train.adversary import Adversary, Precision, adam
from gancomp.train.losses import discriminator_loss, generator_loss
from gancomp.train.options import GauganOptions, TrainOptions
from gancomp.train.perceptual import PerceptualDistance

Maps = list[list[Tensor]]


def feature_matching(fake: Maps, real: Maps) -> Tensor:
    """Mean distance of the maps before the logits, summed over the layers and averaged over the scales."""
    layers = [
        F.l1_loss(ours.float(), wanted.detach().float())
        for scale, target in zip(fake, real, strict=True)
        for ours, wanted in zip(scale[:-1], target[:-1], strict=True)
    ]
    return torch.stack(layers).sum() / len(fake)


class GauganAdversary:
    """A multi-scale discriminator with its optimizer, and a perceptual distance if there is a VGG; judges painted label maps.

    To a stage it is what :class:`gancomp.train.adversary.Adversary` is.

    Args:
        network: judges label maps and images together.
        options: loss and optimisation.
        gaugan: weights of the losses, and a VGG file.
        precision: of the forward passes.
        classes: of the label maps.

    Raises:
        CheckpointError: the VGG file cannot be used.
    """

    def __init__(
        self, network: MultiscaleDiscriminator, options: TrainOptions, gaugan: GauganOptions, precision: Precision, classes: int
    ) -> None:
        self.network, self.options, self.gaugan, self.precision, self.classes = network, options, gaugan, precision, classes
        self.optimizer = adam(network.parameters(), options)
        for group in self.optimizer.param_groups:
            group["lr_factor"] = gaugan.lr_ratio
        self.perceptual: PerceptualDistance | None = None
        if gaugan.vgg and gaugan.lambda_vgg > 0:
            self.perceptual = PerceptualDistance(gaugan.vgg).to(next(network.parameters()).device)

    @classmethod
    def create(
        cls,
        generator: SpadeGenerator,
        options: TrainOptions,
        gaugan: GauganOptions,
        device: torch.device,
        precision: Precision,
        inherit: nn.Module | None = None,
    ) -> GauganAdversary | None:
        """The adversary of ``generator``'s images; None where the adversarial loss is off, and with it all others of GauGAN.

        Raises:
            ConfigError: an inherited discriminator of another kind or number of channels, or no RGB images for a VGG.
            CheckpointError: the VGG file cannot be used.
        """
        if options.lambda_gan == 0:
            return None
        config = generator.config
        channels = config.in_channels + config.out_channels
        if gaugan.vgg and config.out_channels != 3:
            raise ConfigError(f"gaugan: vgg={gaugan.vgg!r}: takes images of 3 channels, these have {config.out_channels}")
        if inherit is None:
            network = MultiscaleDiscriminator(MultiscaleConfig(channels, options.ndf, options.d_layers, gaugan.scales))
            init_weights(network, seeded_generator(options.seed + 1))
        elif isinstance(inherit, MultiscaleDiscriminator) and inherit.config.in_channels == channels:
            network = inherit
        else:
            raise ConfigError(f"discriminator: expected a multiscale one of {channels} channels (label map and image together)")
        return cls(network.to(device).train(), options, gaugan, precision, config.label_nc)

    def train_step(self, condition: Tensor, real: Tensor, fakes: list[Tensor]) -> Tensor:
        """Update the discriminator on real images and on generated ones; returns its loss.

        Args:
            condition: label maps of both, integers.
            real: images [N, C, H, W].
            fakes: generated images of that shape, their losses averaged.
        """
        self.network.requires_grad_(True)
        with self.precision.autocast():
            judged = self._maps(condition, real)
            losses = [
                discriminator_loss(wanted[-1].float(), found[-1].float(), self.options.gan_mode)
                for fake in fakes
                for wanted, found in zip(judged, self._maps(condition, fake.detach()), strict=True)
            ]
            loss = torch.stack(losses).mean()
        self.precision.backward(loss)
        self.precision.step(self.optimizer)
        # The generator's pass must not spend time on gradients of these weights.
        self.network.requires_grad_(False)
        return loss.detach()

    def terms(self, condition: Tensor, fake: Tensor, real: Tensor) -> dict[str, tuple[float, Tensor]]:
        """The generator's losses on its images with their weights, by name."""
        found = self._maps(condition, fake)
        logits = torch.stack([generator_loss(scale[-1].float(), self.options.gan_mode) for scale in found])
        terms = {"G": (self.options.lambda_gan, logits.mean())}
        if self.gaugan.lambda_feat > 0:
            with torch.no_grad():
                wanted = self._maps(condition, real)
            terms["feat"] = (self.gaugan.lambda_feat, feature_matching(found, wanted))
        if self.perceptual is not None:
            terms["vgg"] = (self.gaugan.lambda_vgg, self.perceptual(fake, real))
        return terms

    def _maps(self, condition: Tensor, image: Tensor) -> Maps:
        return self.network(torch.cat([one_hot_labels(condition, self.classes), image.float()], 1))


def make_adversary(
    generator: Generator,
    options: TrainOptions,
    gaugan: GauganOptions | None,
    device: torch.device,
    precision: Precision,
    inherit: nn.Module | None = None,
) -> Adversary | GauganAdversary | None:
    """What ``generator`` trains against: for a SPADE generator that of GauGAN, for others a patch discriminator.

    Raises:
        ConfigError: see :meth:`GauganAdversary.create` and :meth:`Adversary.create`.
        CheckpointError: see :meth:`GauganAdversary.create`.
    """
    if isinstance(generator, SpadeGenerator):
        return GauganAdversary.create(generator, options, gaugan or GauganOptions(), device, precision, inherit)
    return Adversary.create(generator, options, device, precision, inherit)
