"""The discriminator's part of a training step, shared by teacher training and distillation."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from gancomp.errors import ConfigError
from gancomp.models import DiscriminatorConfig, Generator, PatchDiscriminator, seeded_generator
from gancomp.nn import init_weights
from gancomp.train.losses import discriminator_loss, generator_loss
from gancomp.train.options import TrainOptions


def make_discriminator(in_channels: int, options: TrainOptions, seed: int | None = None) -> PatchDiscriminator:
    """A freshly initialised discriminator of the options' size for images of so many channels."""
    network = PatchDiscriminator(DiscriminatorConfig(in_channels, options.ndf, options.d_layers))
    init_weights(network, seeded_generator(options.seed + 1 if seed is None else seed))
    return network


def adam(parameters: Any, options: TrainOptions) -> torch.optim.Adam:
    """Adam as the options say, all tensors in one fused update."""
    return torch.optim.Adam(parameters, lr=options.lr, betas=(options.beta1, options.beta2), fused=True)


class Precision:
    """Automatic mixed precision: an autocast context, and loss scaling where half precision needs it."""

    def __init__(self, options: TrainOptions, device: torch.device) -> None:
        self._dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[options.amp]
        self._device = device.type
        self._scaler = torch.amp.GradScaler(device.type, enabled=options.amp == "fp16")

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context of the forward passes."""
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device, self._dtype)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of ``loss``."""
        self._scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the parameters of ``optimizer`` and forget their gradients."""
        self._scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)

    def end_step(self) -> None:
        """Adapt the loss scale once per training step."""
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The loss scale and its history; empty where nothing is scaled."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._scaler.load_state_dict(state)


class Adversary:
    """A discriminator with its optimizer.

    Args:
        network: judges images.
        options: loss and optimisation.
        precision: of the forward passes.
        conditional: whether it sees the input beside the image (pix2pix), or the image alone (CycleGAN).
    """

    def __init__(self, network: nn.Module, options: TrainOptions, precision: Precision, *, conditional: bool) -> None:
        self.network, self.options, self.precision, self.conditional = network, options, precision, conditional
        self.optimizer = adam(network.parameters(), options)

    @classmethod
    def create(
        cls,
        generator: Generator,
        options: TrainOptions,
        device: torch.device,
        precision: Precision,
        inherit: nn.Module | None = None,
        *,
        seed: int | None = None,
    ) -> Adversary | None:
        """The discriminator of ``generator``'s images: inherited if given, None where the adversarial loss is off.

        A new one is conditional if the options say so; of an inherited one its number of channels tells.

        Raises:
            ConfigError: an inherited one of another number of channels.
        """
        if options.lambda_gan == 0:
            return None
        alone = generator.config.out_channels
        pair = generator.config.in_channels + alone
        conditional = options.conditional
        if isinstance(inherit, PatchDiscriminator):
            channels = inherit.config.in_channels
            if channels not in (alone, pair):
                raise ConfigError(
                    f"discriminator: takes {channels} channels, input and output together have {pair}, the output alone {alone}"
                )
            conditional = channels == pair
        network = inherit if inherit is not None else make_discriminator(pair if conditional else alone, options, seed)
        return cls(network.to(device).train(), options, precision, conditional=conditional)

    def train_step(self, condition: Tensor, real: Tensor, fakes: list[Tensor]) -> Tensor:
        """Update the discriminator on real images and on generated ones; returns its loss.

        Args:
            condition: inputs [N, C, H, W] of both; not looked at unless conditional.
            real: images [N, C', H, W].
            fakes: generated images of that shape, their losses averaged.
        """
        self.network.requires_grad_(True)
        with self.precision.autocast():
            real_logits, *fake_logits = self._logits(condition, [real, *[fake.detach() for fake in fakes]])
            losses = [discriminator_loss(real_logits, logits, self.options.gan_mode) for logits in fake_logits]
            loss = torch.stack(losses).mean()
        self.precision.backward(loss)
        self.precision.step(self.optimizer)
        # The generator's pass must not spend time on gradients of these weights.
        self.network.requires_grad_(False)
        return loss.detach()

    def _logits(self, condition: Tensor, images: list[Tensor]) -> list[Tensor]:
        """The network's verdict on every batch of images; in one pass where that is the same, which reads the weights once."""
        seen = [self._seen(condition, image) for image in images]
        if isinstance(self.network, PatchDiscriminator) and self.network.judges_images_alone:
            return list(self.network(torch.cat(seen)).float().chunk(len(seen)))
        return [self.network(image).float() for image in seen]

    def judge(self, condition: Tensor, fake: Tensor) -> Tensor:
        """The generator's adversarial loss on its images, unweighted."""
        return generator_loss(self.network(self._seen(condition, fake)).float(), self.options.gan_mode)

    def _seen(self, condition: Tensor, image: Tensor) -> Tensor:
        return torch.cat([condition, image], 1) if self.conditional else image
