"""Stage one: train a teacher generator on pairs (pix2pix). Source: Isola et al. 2017, equation 4."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gancomp.data import Batch
from gancomp.models import Generator
from gancomp.train.adversary import Adversary, Precision, adam
from gancomp.train.average import WeightAverage
from gancomp.train.loop import Stage
from gancomp.train.losses import reconstruction_loss
from gancomp.train.options import TrainOptions
from gancomp.train.state import StageFolder


class TeacherStage(Stage):
    """Adversarial training of ``generator`` on pairs: ``lambda_gan * GAN + lambda_recon * |G(x) - y|``."""

    name = "train"

    def __init__(self, generator: Generator, options: TrainOptions) -> None:
        self.options = options
        self.device = options.torch_device()
        self.generator = generator.to(self.device).train()
        self.precision = Precision(options, self.device)
        self.adversary = Adversary.create(generator, options, self.device, self.precision)
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
            loss = self.options.lambda_recon * recon
            losses["recon"] = recon.detach()
            if self.adversary is not None:
                gan = self.adversary.judge(batch.input, fake)
                loss = loss + self.options.lambda_gan * gan
                losses["G"] = gan.detach()
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
