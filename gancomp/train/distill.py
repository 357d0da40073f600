"""Stages two and four: distil the teacher into a supernet, and fine-tune one configuration.

Source: GAN Compression, section 3.1: reconstruction against the ground truth or the teacher's output, a discriminator
inherited from the teacher, and feature distillation through learned 1x1 adaptors,
``sum_t |adaptor_t(student_t) - teacher_t|^2`` averaged over elements as the published code does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gancomp.checkpoints import read_weights
from gancomp.data import Batch
from gancomp.errors import CheckpointError, ConfigError
from gancomp.models import Generator, SpadeGenerator
from gancomp.models.base import save_tensors
from gancomp.models.channels import Config
from gancomp.supernet import Supernet, calibrate
from gancomp.train.adversary import Precision, adam
from gancomp.train.average import WeightAverage
from gancomp.train.gaugan import make_adversary
from gancomp.train.layers import LayerPair, make_adaptors, pair_layers
from gancomp.train.loop import Stage
from gancomp.train.losses import reconstruction_loss
from gancomp.train.options import DistillOptions, GauganOptions
from gancomp.train.state import StageFolder


class DistillStage(Stage):
    """Training of a supernet, or of one generator, under a frozen teacher.

    Args:
        student: the network to train; a :class:`Supernet` gets a fresh configuration every step.
        teacher: frozen.
        options: losses, sampling, optimisation.
        discriminator: the teacher's, inherited; a new one where None is given.
        name: the stage's name in logs.
        gaugan: what else a SPADE generator trains with.
        calibration: gives the label maps over which a generator with batch statistics takes its own before it is written;
            None leaves the running averages of training.
    """

    options: DistillOptions

    def __init__(
        self,
        student: Supernet | Generator,
        teacher: Generator,
        options: DistillOptions,
        discriminator: nn.Module | None = None,
        name: str = "supernet",
        gaugan: GauganOptions | None = None,
        calibration: Callable[[], list[Tensor]] | None = None,
    ) -> None:
        self.name, self.options, self._calibration = name, options, calibration
        self.device = options.torch_device()
        generator = student.generator if isinstance(student, Supernet) else student
        for field in ("in_channels", "out_channels"):
            have, want = getattr(teacher.config, field), getattr(generator.config, field)
            if have != want:
                raise ConfigError(f"teacher: has {field}={have}, the student {want}; they must be equal")
        self.student = student.to(self.device).train()
        self.teacher = teacher.to(self.device).eval().requires_grad_(False)
        self.precision = Precision(options, self.device)
        self.adversary = make_adversary(generator, options, gaugan, self.device, self.precision, discriminator)
        self.layers: list[LayerPair] = []
        if options.lambda_distill > 0:
            if isinstance(student, Supernet):
                student.set(student.space.largest)
            self.layers = pair_layers(teacher, generator, options)
        self.adaptors = make_adaptors(self.layers, options.seed).to(self.device)
        self.average = WeightAverage(self.student, options.ema)
        self.modules = {"student": self.student, "adaptors": self.adaptors, **self.average.modules()}
        trained = [*self.student.parameters(), *self.adaptors.parameters()]
        self.optimizers = {"student": adam(trained, options)}
        if self.adversary is not None:
            self.modules["discriminator"] = self.adversary.network
            self.optimizers["discriminator"] = self.adversary.optimizer

    def configurations(self, step: int) -> list[Config | None]:
        """The sub-networks trained in a step: a function of seed and step alone."""
        if not isinstance(self.student, Supernet):
            return [None]
        space, rng = self.student.space, random.Random(f"{self.options.seed}/{step}")
        if self.options.sampling == "uniform":
            return [space.sample(rng)]
        if self.options.sampling == "weighted":
            return [space.sample(rng, self.options.sample_weight)]
        return [space.largest, space.smallest, space.sample(rng)]

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Forward the teacher once and every sampled sub-network; update the discriminator, then the student."""
        losses = self.update(batch, self.configurations(step))
        self.average.update(self.student)
        return losses

    def update(self, batch: Batch, configs: Sequence[Config | None]) -> dict[str, Tensor]:
        """The part of a step that a graph can hold: all of its arithmetic but for the averaged weights."""
        options, losses = self.options, {}
        with torch.no_grad(), self.precision.autocast():
            wanted, guide = self._teach(batch.input)
        outputs = []
        for index, config in enumerate(configs):
            with self.precision.autocast():
                outputs.append(self._study(batch.input, index, config))
        if self.adversary is not None:
            losses["D"] = self.adversary.train_step(batch.input, batch.target, [image for image, _ in outputs])
        target = batch.target if options.target == "truth" else wanted.float()
        parts: dict[str, list[Tensor]] = {}
        for image, adapted in outputs:
            with self.precision.autocast():
                terms = {"recon": (options.lambda_recon, reconstruction_loss(image.float(), target, options.recon))}
                if self.adversary is not None:
                    terms |= self.adversary.terms(batch.input, image, batch.target)
                if options.lambda_distill > 0:
                    terms["distill"] = (options.lambda_distill, self._distance(adapted, guide))
                loss = torch.stack([weight * value for weight, value in terms.values()]).sum() / len(configs)
            self.precision.backward(loss)
            for name, (_, value) in terms.items():
                parts.setdefault(name, []).append(value.detach())
        self.precision.step(self.optimizers["student"])
        self.precision.end_step()
        return losses | {name: torch.stack(values).mean() for name, values in parts.items()}

    def _teach(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.layers:
            return self.teacher(x), {}
        return self.teacher.forward_features(x, list(dict.fromkeys(pair.teacher for pair in self.layers)))

    def _study(self, x: Tensor, index: int, config: Config | None) -> tuple[Tensor, list[Tensor]]:
        """The image of the index-th sub-network of a step, and its features through the adaptors."""
        if config is not None:
            self.student.set(config)
        if not self.layers:
            return self.student(x), []
        image, features = self.student.forward_features(x, [pair.student for pair in self.layers])
        return image, [adaptor(feature) for adaptor, feature in zip(self.adaptors, features.values(), strict=True)]

    def _distance(self, adapted: list[Tensor], guide: Mapping[str, Tensor]) -> Tensor:
        pairs = zip(adapted, (guide[pair.teacher] for pair in self.layers), strict=True)
        return torch.stack([F.mse_loss(feature.float(), wanted.float()) for feature, wanted in pairs]).sum()

    def preview(self, batch: Batch) -> dict[str, Tensor]:
        """Input, teacher, student (a supernet: largest and smallest) and, of pairs, ground truth."""
        student = self.average.of(self.student).eval()
        images = {"input": batch.input, "teacher": self.teacher(batch.input)}
        if isinstance(student, Supernet):
            for caption, config in (("largest", student.space.largest), ("smallest", student.space.smallest)):
                student.set(config)
                if student.batch_norms:
                    student.calibrate(config, [batch.input])
                images[caption] = student(batch.input)
        else:
            images["student"] = student(batch.input)
        self.student.train()
        return images | {"ground truth": batch.target} if batch.paired else images

    def write_products(self, folder: StageFolder, provenance: dict[str, Any]) -> None:
        """The student, and what fine-tuning inherits: adaptors and discriminator."""
        student = self.average.of(self.student)
        if isinstance(student, Supernet):
            student.set(student.space.largest)
            student.save(folder / "supernet.safetensors", provenance)
        else:
            if self._calibration is not None and isinstance(student, SpadeGenerator):
                calibrate(student, self._calibration())
            student.save(folder / "generator.safetensors", provenance)
        if len(self.adaptors):
            save_tensors(folder / "adaptors.safetensors", self.adaptors.state_dict(), {})
        if self.adversary is not None:
            self.adversary.network.save(folder / "discriminator.safetensors", provenance)

    def inherit_adaptors(self, path: Any) -> None:
        """Start the adaptors from those of a supernet: the first channels of their inputs.

        Raises:
            CheckpointError: the file does not fit the teacher or the layers.
        """
        tensors, _ = read_weights(path)
        state = self.adaptors.state_dict()
        fits = tensors.keys() == state.keys() and all(
            have.dim() == want.dim() and have.shape[0] == want.shape[0] and (have.dim() < 2 or have.shape[1] >= want.shape[1])
            for have, want in ((tensors[name], state[name]) for name in state)
        )
        if not fits:
            raise CheckpointError(f"{path}: the adaptors are those of another teacher or other layers")
        self.adaptors.load_state_dict(
            {name: tensors[name][tuple(slice(0, size) for size in tensor.shape)] for name, tensor in state.items()}
        )
