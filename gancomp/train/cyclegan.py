"""Stage one without pairs: two generators and two discriminators that hold each other to a cycle.

Sources: CycleGAN (Zhu et al. 2017), equations 1 to 3 and section 5.2 (identity loss); the pool of generated images is that of
Shrivastava et al. 2017, section 2.3.
"""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gancomp.data import Batch
from gancomp.errors import ConfigError
from gancomp.models import Generator
from gancomp.train.adversary import Adversary, Precision, adam
from gancomp.train.average import WeightAverage
from gancomp.train.loop import Stage
from gancomp.train.options import CycleOptions, TrainOptions
from gancomp.train.state import StageFolder, Stateful


class ImagePool:
    """Generated images of earlier steps, so that a discriminator does not forget what it was shown.

    Until it is full every image is kept and shown; from then on an image is shown with probability one half, else one that is
    kept is shown and the new one takes its place.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def exchange(self, images: Tensor, rng: random.Random) -> Tensor:
        """What to show for the generated ``images`` [N, C, H, W]: as many images, new and kept ones."""
        shown = []
        for image in images.detach():
            if len(self.images) < self.size:
                self.images.append(image.clone())
            elif self.size and rng.random() < 0.5:
                place = rng.randrange(self.size)
                self.images[place], image = image.clone(), self.images[place]
            # A restored pool lies on the CPU.
            shown.append(image.to(images.device))
        return torch.stack(shown)

    def state_dict(self) -> dict[str, Any]:
        """The kept images."""
        return {"images": list(self.images)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.images = list(state["images"])


class CycleStage(Stage):
    """CycleGAN: ``forth`` maps the input side to the output side, ``back`` maps it back.

    In direction AtoB: ``lambda_gan * (GAN_forth + GAN_back) + lambda_A |back(forth(a)) - a| + lambda_B |forth(back(b)) - b|``
    and, relative to the cycles' weights, ``lambda_identity * (lambda_A |back(a) - a| + lambda_B |forth(b) - b|)``, distances
    being means over the pixels. In direction BtoA the same two networks have each other's names.

    Args:
        forth: the generator of the run's direction.
        back: the generator of the other direction.
        options: optimisation and adversarial loss.
        cycle: weights of cycles and identity, size of the pools.
        direction: the run's, ``AtoB`` or ``BtoA``: which side is the input.

    Raises:
        ConfigError: generators that are not each other's inverse in channels, an identity loss between images of unequal
            channels, or conditional discriminators.
    """

    name = "train"

    def __init__(
        self, forth: Generator, back: Generator, options: TrainOptions, cycle: CycleOptions, direction: str = "AtoB"
    ) -> None:
        inputs, outputs = forth.config.in_channels, forth.config.out_channels
        if (back.config.in_channels, back.config.out_channels) != (outputs, inputs):
            raise ConfigError(
                f"back: maps {back.config.in_channels} channels to {back.config.out_channels}; expected {outputs} to {inputs}"
            )
        if cycle.lambda_identity > 0 and inputs != outputs:
            raise ConfigError(
                f"cyclegan: lambda_identity={cycle.lambda_identity}: the identity loss needs as many input channels "
                f"({inputs}) as output channels ({outputs}); set it to 0"
            )
        if options.conditional and options.lambda_gan > 0:
            raise ConfigError("train: conditional=True: without pairs a discriminator sees the image alone; set it to False")
        self.options, self.cycle, self.direction = options, cycle, direction
        self.device = options.torch_device()
        self.forth, self.back = forth.to(self.device).train(), back.to(self.device).train()
        self.precision = Precision(options, self.device)
        self.judges = {
            "forth": Adversary.create(forth, options, self.device, self.precision),
            "back": Adversary.create(back, options, self.device, self.precision, seed=options.seed + 4),
        }
        self.pools = {name: ImagePool(cycle.pool_size) for name in self.judges}
        self.averages = {
            name: WeightAverage(network, options.ema) for name, network in (("forth", self.forth), ("back", self.back))
        }
        self.modules = {"forth": self.forth, "back": self.back}
        self.optimizers = {"generators": adam([*self.forth.parameters(), *self.back.parameters()], options)}
        for name, average in self.averages.items():
            self.modules |= {f"{name} {kind}": module for kind, module in average.modules().items()}
        for name, judge in self.judges.items():
            if judge is not None:
                self.modules[f"{name} discriminator"] = judge.network
                self.optimizers[f"{name} discriminator"] = judge.optimizer

    def parts(self) -> dict[str, Stateful]:
        """As of the base class, and the pools."""
        return {**super().parts(), **{f"{name} pool": pool for name, pool in self.pools.items()}}

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Update both generators together, then each discriminator on real images and on what its pool gives.

        A loss is named after the side whose images it is about.
        """
        inputs = {"forth": batch.input, "back": batch.target}
        real = {"forth": batch.target, "back": batch.input}
        fakes, losses = self._update_generators(batch.input, batch.target)
        for name, judge in self.judges.items():
            if judge is not None:
                # A function of seed and step, as all random choices are.
                rng = random.Random(f"{self.options.seed}/{step}/{name} pool")
                shown = self.pools[name].exchange(fakes[name], rng)
                losses[f"D_{self._painted(name)}"] = judge.train_step(inputs[name], real[name], [shown])
        self.precision.end_step()
        self.averages["forth"].update(self.forth)
        self.averages["back"].update(self.back)
        return losses

    def _painted(self, name: str) -> str:
        """The letter of the side whose images a generator paints."""
        return self.direction[-1] if name == "forth" else self.direction[0]

    def _update_generators(self, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Update on images ``x`` of the input side and ``y`` of the output side; returns both generators' images and losses."""
        weights = {"A": self.cycle.lambda_A, "B": self.cycle.lambda_B}
        terms: dict[str, tuple[float, Tensor]] = {}
        with self.precision.autocast():
            fakes = {"forth": self.forth(x), "back": self.back(y)}
            for name, inverse, start in (("forth", self.back, x), ("back", self.forth, y)):
                # ``inverse`` paints the side that this cycle starts from.
                letter = self._painted("back" if name == "forth" else "forth")
                terms[f"cycle_{letter}"] = (weights[letter], _distance(inverse(fakes[name]), start))
                if self.cycle.lambda_identity > 0:
                    weight = weights[letter] * self.cycle.lambda_identity
                    terms[f"idt_{letter}"] = (weight, _distance(inverse(start), start))
                judge = self.judges[name]
                if judge is not None:
                    judge.network.requires_grad_(False)
                    terms[f"G_{self._painted(name)}"] = (self.options.lambda_gan, judge.judge(start, fakes[name]))
            loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
        self.precision.backward(loss)
        self.precision.step(self.optimizers["generators"])
        return {name: fake.detach() for name, fake in fakes.items()}, {name: v.detach() for name, (_, v) in terms.items()}

    def preview(self, batch: Batch) -> dict[str, Tensor]:
        """Both cycles: an input, its translation and what that is mapped back to; then the same from the output side."""
        forth, back = (self.averages[name].of(net).eval() for name, net in (("forth", self.forth), ("back", self.back)))
        x, y = self.direction[0], self.direction[-1]
        fake_y, fake_x = forth(batch.input), back(batch.target)
        images = {x: batch.input, f"fake {y}": fake_y, f"rec {x}": back(fake_y)}
        images |= {y: batch.target, f"fake {x}": fake_x, f"rec {y}": forth(fake_x)}
        self.forth.train()
        self.back.train()
        return images

    def write_products(self, folder: StageFolder, provenance: dict[str, Any]) -> None:
        """``generator.safetensors`` and ``discriminator.safetensors`` of the run's direction, ``generator_BtoA.safetensors``
        and ``discriminator_BtoA.safetensors`` of the other one; each records its direction.

        A direction's discriminator is the one that judges the images its generator paints.
        """
        other = "BtoA" if self.direction == "AtoB" else "AtoB"
        for name, network, direction, ending in (
            ("forth", self.forth, self.direction, ""),
            ("back", self.back, other, f"_{other}"),
        ):
            generator = self.averages[name].of(network)
            assert isinstance(generator, Generator)
            generator.save(folder / f"generator{ending}.safetensors", provenance, direction=direction)
            judge = self.judges[name]
            if judge is not None:
                judge.network.save(folder / f"discriminator{ending}.safetensors", provenance, direction=direction)


def _distance(images: Tensor, wanted: Tensor) -> Tensor:
    return F.l1_loss(images.float(), wanted)
