"""CycleGAN's stage: steps against stock PyTorch, the pools, resumed runs, both directions' products."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gancomp
from gancomp.checkpoints import load_network, read_metadata
from gancomp.data import Batch, DataConfig, open_dataset
from gancomp.errors import ConfigError
from gancomp.io import read_jsonl, sha256_file
from gancomp.models import ResnetConfig, ResnetGenerator
from gancomp.train import CycleOptions, CycleStage, StageFolder, TrainOptions, fit
from gancomp.train.cyclegan import ImagePool

from ..models import published

DOUBLE = torch.float64
OPTIONS = {
    "batch_size": 2, "lr": 0.01, "ndf": 3, "d_layers": 1, "device": "cpu", "gan_mode": "lsgan", "conditional": False,
}  # fmt: skip


def generator(seed: int = 0, **fields) -> ResnetGenerator:
    return published.randomised(ResnetGenerator(ResnetConfig.uniform(2, 2, **fields)), seed=seed)


def stage(direction: str = "AtoB", cycle: CycleOptions | None = None, **options) -> CycleStage:
    cycle = CycleOptions(pool_size=3) if cycle is None else cycle
    return CycleStage(generator(1), generator(2), TrainOptions(**{**OPTIONS, **options}), cycle, direction)


def batches(count: int = 5) -> list[Batch]:
    images = torch.randn(count, 2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(3)).tanh()
    return [Batch(a, b, ("a", "b"), paired=False) for a, b in images]


# -- the step --------------------------------------------------------------------------------------------------------------


class Pool:
    """The pool by its description, with the draws of the subject."""

    def __init__(self, size: int) -> None:
        self.size, self.kept = size, []

    def __call__(self, images: Tensor, rng: random.Random) -> Tensor:
        out = []
        for image in images:
            if len(self.kept) < self.size:
                self.kept.append(image)
                out.append(image)
            elif rng.random() < 0.5:
                place = rng.randrange(self.size)
                out.append(self.kept[place])
                self.kept[place] = image
            else:
                out.append(image)
        return torch.stack(out).detach()


@pytest.mark.parametrize(
    ("cycle", "options"),
    [
        (CycleOptions(pool_size=3), {}),
        (CycleOptions(lambda_A=4.0, lambda_B=7.0, lambda_identity=0.0, pool_size=2), {"gan_mode": "hinge"}),
        (CycleOptions(lambda_A=3.0, lambda_B=0.5, lambda_identity=2.0, pool_size=1), {"lambda_gan": 0.3}),
        (CycleOptions(), {"lambda_gan": 0.0}),
    ],
)
@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_steps_are_those_of_stock_pytorch(direction: str, cycle: CycleOptions, options: dict) -> None:
    """In double precision, and to what three steps of Adam leave of single-precision losses."""
    subject = stage(direction, cycle, **options)
    settings = subject.options
    adversarial = settings.lambda_gan > 0
    for network in subject.modules.values():
        network.double()

    def copied(stock: nn.Module, network: nn.Module) -> nn.Module:
        stock.double().load_state_dict(network.state_dict())
        return stock

    forth, back = (copied(published.resnet(2, 2), network) for network in (subject.forth, subject.back))
    d_forth = d_back = None
    if adversarial:
        d_forth, d_back = (
            copied(published.Patch(3, 3, 1, "instance"), subject.judges[name].network) for name in ("forth", "back")
        )
        optimizers_d = [torch.optim.Adam(d.parameters(), lr=0.01, betas=(0.5, 0.999)) for d in (d_forth, d_back)]
    optimizer = torch.optim.Adam([*forth.parameters(), *back.parameters()], lr=0.01, betas=(0.5, 0.999))
    pools = {"forth": Pool(cycle.pool_size), "back": Pool(cycle.pool_size)}
    into, out = ("A", "B") if direction == "AtoB" else ("B", "A")
    weight = {"A": cycle.lambda_A, "B": cycle.lambda_B}

    for step, batch in enumerate(batches()):
        batch = Batch(batch.input.double(), batch.target.double(), batch.names, paired=False)
        losses = subject.step(batch, step)
        x, y = batch.input, batch.target
        fake_y, fake_x = forth(x), back(y)
        expected = {
            f"cycle_{into}": F.l1_loss(back(fake_y), x),
            f"cycle_{out}": F.l1_loss(forth(fake_x), y),
        }
        loss = weight[into] * expected[f"cycle_{into}"] + weight[out] * expected[f"cycle_{out}"]
        if cycle.lambda_identity > 0:
            expected[f"idt_{into}"] = F.l1_loss(back(x), x)
            expected[f"idt_{out}"] = F.l1_loss(forth(y), y)
            for letter in (into, out):
                loss = loss + cycle.lambda_identity * weight[letter] * expected[f"idt_{letter}"]
        if adversarial:
            hinge = settings.gan_mode == "hinge"
            for d, fake, letter in ((d_forth, fake_y, out), (d_back, fake_x, into)):
                expected[f"G_{letter}"] = -d(fake).mean() if hinge else ((d(fake) - 1) ** 2).mean()
                loss = loss + settings.lambda_gan * expected[f"G_{letter}"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if adversarial:
            for d, opt, name, real, fake, letter in (
                (d_forth, optimizers_d[0], "forth", y, fake_y, out),
                (d_back, optimizers_d[1], "back", x, fake_x, into),
            ):
                rng = random.Random(f"{settings.seed}/{step}/{name} pool")
                shown = pools[name](fake.detach(), rng)
                opt.zero_grad()
                if hinge:
                    wanted = 0.5 * (F.relu(1 - d(real)).mean() + F.relu(1 + d(shown)).mean())
                else:
                    wanted = 0.5 * (((d(real) - 1) ** 2).mean() + (d(shown) ** 2).mean())
                wanted.backward()
                opt.step()
                expected[f"D_{letter}"] = wanted
        assert losses.keys() == expected.keys()
        for name, value in expected.items():
            assert not losses[name].requires_grad
            assert losses[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6), (step, name)
    pairs = [(subject.forth, forth), (subject.back, back)]
    if adversarial:
        pairs += [(subject.judges["forth"].network, d_forth), (subject.judges["back"].network, d_back)]
    for ours, stock in pairs:
        for name, tensor in stock.state_dict().items():
            assert (ours.state_dict()[name] - tensor).abs().max() < 1e-4, name


def test_both_directions_of_a_run_are_the_same_training() -> None:
    """What is forth in one is back in the other: with the same weights they end with the same weights."""
    there = stage("AtoB")
    turned = CycleStage(generator(2), generator(1), there.options, there.cycle, "BtoA")
    for name, other in (("forth", "back"), ("back", "forth")):
        turned.judges[name].network.load_state_dict(there.judges[other].network.state_dict())
    there.pools = turned.pools = {"forth": ImagePool(0), "back": ImagePool(0)}
    for step, batch in enumerate(batches(2)):
        one = there.step(batch, step)
        two = turned.step(Batch(batch.target, batch.input, batch.names, paired=False), step)
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert value.item() == pytest.approx(two[name].item(), rel=1e-4), name


def test_training_lowers_the_cycle_losses() -> None:
    subject = stage(lambda_gan=0.0)
    (batch,) = batches(1)
    first = subject.step(batch, 0)
    for step in range(1, 30):
        last = subject.step(batch, step)
    for name in ("cycle_A", "cycle_B", "idt_A", "idt_B"):
        assert last[name] < 0.9 * first[name], name


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_gives_the_same_losses_up_to_its_rounding(monkeypatch, amp: str) -> None:
    """As on a GPU, but for the device: the CPU's autocast and its loss scaling."""
    monkeypatch.setattr(TrainOptions, "torch_device", lambda self: torch.device("cpu"))
    plain, mixed = stage(lr=1e-4), stage(lr=1e-4, amp=amp)
    for step, batch in enumerate(batches(3)):
        expected, losses = plain.step(batch, step), mixed.step(batch, step)
        assert losses.keys() == expected.keys()
        for name, value in expected.items():
            assert losses[name].item() == pytest.approx(value.item(), rel=0.05, abs=0.02), (step, name)
    assert all(parameter.dtype == torch.float32 for parameter in mixed.forth.parameters())
    state = {name: part.state_dict() for name, part in mixed.parts().items()}
    for name, part in mixed.parts().items():
        part.load_state_dict(state[name])


# -- the pools -------------------------------------------------------------------------------------------------------------


def numbered(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def values(images: Tensor) -> list[int]:
    return [int(image.mean()) for image in images]


def test_a_pool_that_is_not_full_shows_the_new_images() -> None:
    pool = ImagePool(5)
    assert values(pool.exchange(numbered(0, 1), random.Random(0))) == [0, 1]
    assert values(pool.exchange(numbered(2, 3), random.Random(0))) == [2, 3]
    assert values(torch.stack(pool.images)) == [0, 1, 2, 3]


def test_a_full_pool_shows_half_of_the_new_images() -> None:
    pool, rng = ImagePool(50), random.Random(1)
    pool.exchange(numbered(*range(50)), rng)
    shown = [values(pool.exchange(numbered(number), rng))[0] for number in range(50, 1050)]
    new = sum(image == number for number, image in enumerate(shown, 50))
    assert 420 < new < 580, "of 1000"
    assert len(pool.images) == 50
    old = [image for number, image in enumerate(shown, 50) if image != number]
    assert len(set(old)) == len(old), "an image that was taken out is gone"
    assert min(values(torch.stack(pool.images))) >= 0
    assert not set(values(torch.stack(pool.images))) & set(old)


def test_a_pool_of_no_size_keeps_nothing() -> None:
    pool = ImagePool(0)
    assert values(pool.exchange(numbered(7), random.Random(0))) == [7]
    assert pool.images == []


def test_a_pool_keeps_copies_without_gradients() -> None:
    pool = ImagePool(2)
    images = numbered(1).clone().requires_grad_(True)
    shown = pool.exchange(images * 1, random.Random(0))
    assert not shown.requires_grad
    images.data.fill_(9)
    assert values(torch.stack(pool.images)) == [1]


# -- runs ------------------------------------------------------------------------------------------------------------------

TINY = DataConfig(load_size=20, crop_size=16, synthetic_train=6, synthetic_test=3, unpaired=True)


def train(folder: Path, **options) -> CycleStage:
    steps = options.pop("stop_at", None)
    settings = {"steps": 16, "log_every": 5, "save_every": 4, "sample_every": 0, "ema": 0.9, **options}
    subject = CycleStage(
        generator(1, norm="batch", dropout=0.3),
        generator(2),
        TrainOptions(**{**OPTIONS, **settings}),
        CycleOptions(pool_size=4),
    )
    where = StageFolder(folder)
    where.open({})
    fit(subject, open_dataset(TINY, "train"), open_dataset(TINY, "val"), where, {"a": 1}, progress=False, stop_at=steps)
    return subject


PRODUCTS = [f"{name}{ending}.safetensors" for name in ("discriminator", "generator") for ending in ("", "_BtoA")]


@pytest.mark.slow
@pytest.mark.parametrize("stops", [[7], [1, 12]])
def test_a_resumed_run_ends_with_the_bytes_of_an_unbroken_one(tmp_path: Path, stops: list[int]) -> None:
    """Networks, averages, optimizers, pools and draws: a pool that is lost changes the discriminators."""
    train(tmp_path / "whole")
    for stop in stops:
        train(tmp_path / "parts", stop_at=stop)
    train(tmp_path / "parts")
    for name in [*PRODUCTS, "samples/step_0000016.png"]:
        assert sha256_file(tmp_path / "parts" / name) == sha256_file(tmp_path / "whole" / name), name
    logs = [
        [{k: v for k, v in record.items() if k != "seconds"} for record in read_jsonl(tmp_path / run / "log.jsonl")]
        for run in ("whole", "parts")
    ]
    assert logs[0] == logs[1]


def test_the_pools_are_part_of_the_state(tmp_path: Path) -> None:
    train(tmp_path, stop_at=4)
    state = torch.load(tmp_path / "state.pt", weights_only=True)["parts"]
    assert len(state["forth pool"]["images"]) == len(state["back pool"]["images"]) == 4
    assert {"forth", "back", "forth average", "back average", "forth discriminator", "back discriminator"} < state.keys()


@pytest.mark.parametrize("ema", [0.0, 0.5])
@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_both_directions_are_products(tmp_path: Path, direction: str, ema: float) -> None:
    subject = stage(direction, ema=ema)
    for step, batch in enumerate(batches(2)):
        subject.step(batch, step)
    subject.write_products(StageFolder(tmp_path), {"stage": "train"})
    other = "BtoA" if direction == "AtoB" else "AtoB"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "discriminator.safetensors", f"discriminator_{other}.safetensors",
        "generator.safetensors", f"generator_{other}.safetensors",
    ]  # fmt: skip
    for name, network, way, ending in (
        ("forth", subject.forth, direction, ""),
        ("back", subject.back, other, f"_{other}"),
    ):
        kept = subject.averages[name].of(network).state_dict()
        assert (ema == 0) == all(torch.equal(kept[key], value) for key, value in network.state_dict().items())
        path = tmp_path / f"generator{ending}.safetensors"
        loaded = gancomp.load_generator(path)
        assert all(torch.equal(value, kept[key]) for key, value in loaded.state_dict().items())
        assert read_metadata(path)["gancomp.direction"] == f'"{way}"'
        judge = load_network(tmp_path / f"discriminator{ending}.safetensors")
        mine = subject.judges[name].network.state_dict()
        assert all(torch.equal(value, mine[key]) for key, value in judge.state_dict().items())
        assert judge.config.in_channels == 3


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_preview_shows_both_cycles(direction: str) -> None:
    subject = stage(direction, ema=0.5)
    (batch,) = batches(1)
    subject.step(batch, 0)
    with torch.no_grad():
        images = subject.preview(batch)
        x, y = direction[0], direction[-1]
        assert list(images) == [x, f"fake {y}", f"rec {x}", y, f"fake {x}", f"rec {y}"]
        forth, back = subject.averages["forth"].of(subject.forth), subject.averages["back"].of(subject.back)
        assert torch.equal(images[f"rec {x}"], back(forth(batch.input)))
        assert torch.equal(images[f"rec {y}"], forth(back(batch.target)))
    assert subject.forth.training
    assert subject.back.training


def test_sides_of_different_channels() -> None:
    forth, back = generator(1, in_channels=1, out_channels=3), generator(2, in_channels=3, out_channels=1)
    options = TrainOptions(**OPTIONS)
    with pytest.raises(
        ConfigError, match=r"lambda_identity=0\.5: the identity loss needs as many input channels \(1\) as output"
    ):
        CycleStage(forth, back, options, CycleOptions())
    subject = CycleStage(forth, back, options, CycleOptions(lambda_identity=0.0))
    grey = Batch(torch.zeros(1, 1, 16, 16), torch.zeros(1, 3, 16, 16), ("a",), paired=False)
    assert subject.step(grey, 0).keys() == {"cycle_A", "cycle_B", "G_A", "G_B", "D_A", "D_B"}
    assert subject.judges["back"].network.config.in_channels == 1
    with pytest.raises(ConfigError, match="back: maps 1 channels to 3; expected 3 to 1"):
        CycleStage(forth, forth, options, CycleOptions(lambda_identity=0.0))


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="conditional=True: without pairs a discriminator sees the image alone"):
        stage(conditional=True)
    stage(conditional=True, lambda_gan=0.0)
    for name, value in (("lambda_A", -1.0), ("lambda_B", float("nan")), ("lambda_identity", -0.1), ("pool_size", -1)):
        with pytest.raises(ConfigError, match=f"cyclegan: {name}={value!r}: expected"):
            CycleOptions(**{name: value})


def test_the_two_discriminators_start_from_different_weights() -> None:
    subject = stage()
    weights = [judge.network.model[0].weight for judge in subject.judges.values()]
    assert not torch.equal(*weights)
