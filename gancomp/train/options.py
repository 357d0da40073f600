"""What a training run can be told; every field is a flag and a line of the run file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from gancomp.errors import ConfigError
from gancomp.models.base import check_range
from gancomp.train.losses import GanMode, ReconLoss


@dataclass(frozen=True)
class TrainOptions:
    """Adversarial training. The defaults are those of the published pix2pix recipes; other methods have theirs."""

    steps: int = 20000
    """Generator updates."""
    batch_size: int = 4
    """Images per update."""
    lr: float = 2e-4
    """Adam's learning rate before the decay."""
    beta1: float = 0.5
    """Adam's first momentum."""
    beta2: float = 0.999
    """Adam's second momentum."""
    decay_start: float = 0.5
    """Fraction of the steps after which the rate falls linearly to zero."""
    gan_mode: GanMode = "hinge"
    """Adversarial loss."""
    lambda_gan: float = 1.0
    """Weight of the adversarial loss; 0 trains without a discriminator."""
    recon: ReconLoss = "l1"
    """Reconstruction loss."""
    lambda_recon: float = 100.0
    """Weight of the reconstruction loss (pix2pix and distillation)."""
    conditional: bool = True
    """A new discriminator sees the input beside the image (pix2pix); off: the image alone (CycleGAN)."""
    ndf: int = 128
    """Base width of the discriminator."""
    d_layers: int = 3
    """Stride-2 layers of the discriminator; 3 is the 70x70 PatchGAN, 0 the PixelGAN. GauGAN: and one of stride 1."""
    ema: float = 0.0
    """Decay of an exponential moving average of the generator that is kept instead of the last weights; 0 turns it off."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision, on a GPU."""
    device: str = "auto"
    """`auto` takes a GPU when there is one; `cpu`, `cuda`, `cuda:1`."""
    seed: int = 233
    """Seed of weights, data order, augmentation and sampled configurations."""
    workers: int = 0
    """Data-loading workers beside the training process."""
    log_every: int = 50
    """Steps between lines of the log."""
    save_every: int = 500
    """Steps between saved states; a killed run goes on from the last one."""
    sample_every: int = 500
    """Steps between sample pictures; 0 for none but the last."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("steps", 1, 10**9),
            ("batch_size", 1, 4096),
            ("lr", 1e-9, 1.0),
            ("beta1", 0.0, 0.9999),
            ("beta2", 0.0, 0.999999),
            ("decay_start", 0.0, 1.0),
            ("lambda_gan", 0.0, 1e6),
            ("lambda_recon", 0.0, 1e6),
            ("ndf", 1, 4096),
            ("d_layers", 0, 6),
            ("ema", 0.0, 0.999999),
            ("seed", 0, 2**32 - 1),
            ("workers", 0, 256),
            ("log_every", 1, 10**9),
            ("save_every", 1, 10**9),
            ("sample_every", 0, 10**9),
        ):
            check_range("train", name, getattr(self, name), low, high)
        for name, allowed in (
            ("gan_mode", ("hinge", "lsgan", "vanilla")),
            ("recon", ("l1", "l2", "smooth_l1")),
            ("amp", ("off", "bf16", "fp16")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"train: {name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}")

    def learning_rate(self, step: int) -> float:
        """The rate at a step: constant, then linear to zero (reached one step after the last)."""
        start = self.decay_start * self.steps
        return self.lr * min(1.0, (self.steps - step) / max(self.steps - start, 1.0))

    def torch_device(self) -> torch.device:
        """The device these options ask for.

        Raises:
            ConfigError: unknown name, no such device, or mixed precision where it is not to be had.
        """
        name = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        try:
            device = torch.device(name)
        except RuntimeError:
            raise ConfigError(f"device={self.device!r}: expected auto, cpu, cuda or cuda:N") from None
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(f"device={self.device!r}: this machine has {torch.cuda.device_count()} CUDA devices")
        if device.type not in ("cpu", "cuda"):
            raise ConfigError(f"device={self.device!r}: expected auto, cpu, cuda or cuda:N")
        if self.amp != "off" and device.type == "cpu":
            raise ConfigError(f"amp={self.amp!r}: mixed precision needs a GPU; use 'off' on the CPU")
        return device


@dataclass(frozen=True)
class CycleOptions:
    """CycleGAN's own part of a teacher's training; the other methods do not read it."""

    lambda_A: float = 10.0
    """Weight of the cycle that starts and ends on side A."""
    lambda_B: float = 10.0
    """Weight of the cycle that starts and ends on side B."""
    lambda_identity: float = 0.5
    """Weight of the identity loss, relative to the cycle's weights; 0 turns it off."""
    pool_size: int = 50
    """Generated images from earlier steps that are kept for each discriminator; 0 shows it the newest ones only."""

    def __post_init__(self) -> None:
        for name in ("lambda_A", "lambda_B", "lambda_identity"):
            check_range("cyclegan", name, getattr(self, name), 0.0, 1e6)
        check_range("cyclegan", "pool_size", self.pool_size, 0, 100_000)


@dataclass(frozen=True)
class GauganOptions:
    """GauGAN's own part of every stage of training; the other methods do not read it."""

    lambda_feat: float = 10.0
    """Weight of feature matching: the discriminator's maps of generated images against those of real ones."""
    lambda_vgg: float = 10.0
    """Weight of the perceptual loss, where there is a `vgg`."""
    vgg: str = ""
    """File of a VGG-19 for ImageNet (a plain state dict with torchvision's names); empty: no perceptual loss."""
    scales: int = 2
    """Scales of the discriminator, each half of the one before."""
    lr_ratio: float = 4.0
    """The discriminator's learning rate over the generator's (two time-scale update rule)."""

    def __post_init__(self) -> None:
        check_range("gaugan", "lambda_feat", self.lambda_feat, 0.0, 1e6)
        check_range("gaugan", "lambda_vgg", self.lambda_vgg, 0.0, 1e6)
        check_range("gaugan", "scales", self.scales, 1, 5)
        check_range("gaugan", "lr_ratio", self.lr_ratio, 0.01, 100.0)


@dataclass(frozen=True)
class DistillOptions(TrainOptions):
    """Distillation of a teacher into a supernet or into one generator (GAN Compression, sections 3.1 and 3.2).

    The sandwich rule is that of Yu and Huang 2019.
    """

    lambda_distill: float = 1.0
    """Weight of the feature distillation through 1x1 adaptors; 0 turns it off."""
    sampling: Literal["uniform", "weighted", "sandwich"] = "uniform"
    """Sub-networks of a step: one drawn evenly, one with small widths favoured, or largest, smallest and a random one."""
    sample_weight: float = 2.0
    """With `weighted`: each smaller choice of a slot is this many times as likely as the next larger one."""
    teacher_layers: str = ""
    """Layers of the teacher to distil from, such as `model.9,model.18`; empty: those it offers of the student's sizes."""
    student_layers: str = ""
    """The student's layers that follow them, as many and of equal sizes."""
    target: Literal["truth", "teacher"] = "truth"
    """What the reconstruction loss compares with: the ground truth (paired data) or the teacher's output."""
    init: Literal["teacher", "random"] = "teacher"
    """Start from the teacher's most important channels where the student is no wider, or at random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("distill", "lambda_distill", self.lambda_distill, 0.0, 1e6)
        check_range("distill", "sample_weight", self.sample_weight, 0.01, 100.0)
        self.layer_names()
        for name, allowed in (
            ("sampling", ("uniform", "weighted", "sandwich")),
            ("target", ("truth", "teacher")),
            ("init", ("teacher", "random")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"distill: {name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}")

    def layer_names(self) -> tuple[list[str], list[str]]:
        """The teacher's and the student's layers that are named; two empty lists where none are.

        Raises:
            ConfigError: not as many of one as of the other, or a student's layer twice.
        """
        teacher, student = (
            [name.strip() for name in text.split(",")] if text else [] for text in (self.teacher_layers, self.student_layers)
        )
        if len(teacher) != len(student) or len(set(student)) < len(student):
            raise ConfigError(
                f"distill: teacher_layers={self.teacher_layers!r}, student_layers={self.student_layers!r}: expected as many of "
                "both, the student's different ones"
            )
        return teacher, student
