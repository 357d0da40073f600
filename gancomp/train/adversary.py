"""The discriminator's part of a training step, shared by teacher training and distillation."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from gancomp.errors import ConfigError
from gancomp.models import DiscriminatorConfig, PatchDiscriminator, seeded_generator
from gancomp.nn import init_weights
from gancomp.train.losses import discriminator_loss, generator_loss
from gancomp.train.options import TrainOptions


def make_discriminator(in_channels: int, options: TrainOptions) -> PatchDiscriminator:
    """A freshly initialised discriminator of the options' size for input and output channels together."""
    network = PatchDiscriminator(DiscriminatorConfig(in_channels, options.ndf, options.d_layers))
    init_weights(network, seeded_generator(options.seed + 1))
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
    """A conditional discriminator with its optimizer: it judges (input, image) pairs."""

    def __init__(self, network: nn.Module, options: TrainOptions, precision: Precision) -> None:
        self.network, self.options, self.precision = network, options, precision
        self.optimizer = adam(network.parameters(), options)

    @classmethod
    def create(
        cls, channels: int, options: TrainOptions, device: torch.device, precision: Precision, inherit: nn.Module | None = None
    ) -> Adversary | None:
        """The discriminator of a run: inherited if given, None where the adversarial loss is off."""
        if options.lambda_gan == 0:
            return None
        network = inherit if inherit is not None else make_discriminator(channels, options)
        if isinstance(network, PatchDiscriminator) and network.config.in_channels != channels:
            raise ConfigError(
                f"discriminator: takes {network.config.in_channels} channels, input and output together have {channels}"
            )
        return cls(network.to(device).train(), options, precision)

    def train_step(self, condition: Tensor, real: Tensor, fakes: list[Tensor]) -> Tensor:
        """Update the discriminator on real pairs and on generated ones; returns its loss."""
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
        pairs = [torch.cat([condition, image], 1) for image in images]
        if isinstance(self.network, PatchDiscriminator) and self.network.judges_images_alone:
            return list(self.network(torch.cat(pairs)).float().chunk(len(pairs)))
        return [self.network(pair).float() for pair in pairs]

    def judge(self, condition: Tensor, fake: Tensor) -> Tensor:
        """The generator's adversarial loss on its images, unweighted."""
        return generator_loss(self.network(torch.cat([condition, fake], 1)).float(), self.options.gan_mode)
