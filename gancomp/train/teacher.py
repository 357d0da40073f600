"""Stage one: train a teacher generator on pairs.

Sources: pix2pix (Isola et al. 2017), equation 4; GauGAN (Park et al. 2019), section 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gancomp.data import Batch
from gancomp.models import Generator
from gancomp.train.adversary import Precision, adam
from gancomp.train.average import WeightAverage
from gancomp.train.gaugan import make_adversary
from gancomp.train.loop import Stage
from gancomp.train.losses import reconstruction_loss
from gancomp.train.options import GauganOptions, TrainOptions
from gancomp.train.state import StageFolder


class TeacherStage(Stage):
    """Adversarial training of ``generator`` on pairs: ``lambda_gan * GAN + lambda_recon * |G(x) - y|``.

    A SPADE generator trains against GauGAN's adversary, with what else ``gaugan`` says.
    """

    name = "train"

    def __init__(self, generator: Generator, options: TrainOptions, gaugan: GauganOptions | None = None) -> None:
        self.options = options
        self.device = options.torch_device()
        self.generator = generator.to(self.device).train()
        self.precision = Precision(options, self.device)
        self.adversary = make_adversary(generator, options, gaugan, self.device, self.precision)
        self.average = WeightAverage(self.generator, options.ema)
        self.modules = {"generator": self.generator, **self.average.modules()}
        self.optimizers = {"generator": adam(self.generator.parameters(), options)}
        if self.adversary is not None:
            self.modules["discriminator"] = self.adversary.network
            self.optimizers["discriminator"] = self.adversary.optimizer

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Update the discriminator, then the generator."""
        losses: dict[str, Tensor] = {}
        with self.precision.autocast():
            fake = self.generator(batch.input)
        if self.adversary is not None:
            losses["D"] = self.adversary.train_step(batch.input, batch.target, [fake])
        with self.precision.autocast():
            recon = reconstruction_loss(fake.float(), batch.target, self.options.recon)
            terms = {"recon": (self.options.lambda_recon, recon)}
            if self.adversary is not None:
                terms |= self.adversary.terms(batch.input, fake, batch.target)
            loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
            losses |= {name: value.detach() for name, (_, value) in terms.items()}
        self.precision.backward(loss)
        self.precision.step(self.optimizers["generator"])
        self.precision.end_step()
        self.average.update(self.generator)
        return losses

    def preview(self, batch: Batch) -> dict[str, Tensor]:
        """Input, output and ground truth."""
        network = self.average.of(self.generator).eval()
        images = {"input": batch.input, "teacher": network(batch.input), "ground truth": batch.target}
        self.generator.train()
        return images

    def write_products(self, folder: StageFolder, provenance: dict[str, Any]) -> None:
        """``generator.safetensors`` and, where there is one, ``discriminator.safetensors``."""
        generator = self.average.of(self.generator)
        assert isinstance(generator, Generator)
        generator.save(folder / "generator.safetensors", provenance)
        if self.adversary is not None:
            self.adversary.network.save(folder / "discriminator.safetensors", provenance)
