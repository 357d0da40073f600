"""Files of other projects: every layout is built here from stock layers, loaded, and compared with its own forward pass."""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gancomp
from gancomp.checkpoints import convert_state
from gancomp.errors import CheckpointError
from gancomp.models import Generator, ResnetConfig, UnetConfig
from gancomp.testing import assert_accurate, images

from ..models import published


def load(tmp_path: Path, value: object, **options) -> Generator:
    torch.save(value, tmp_path / "latest_net_G.pth")
    return gancomp.load_generator(tmp_path / "latest_net_G.pth", **options)


def assert_same_images(ours: Generator, stock: nn.Module, size: int = 16, n: int = 2) -> None:
    x = images(n, ours.config.in_channels, size, 2 * size).tanh()
    with torch.no_grad():
        assert_accurate(ours(x), stock(x), copy.deepcopy(stock).double()(x.double()))


def with_statistics(stock: nn.Module) -> dict[str, Tensor]:
    """The state of files from before PyTorch 0.4: InstanceNorms that saved statistics which nobody used."""
    state = stock.state_dict()
    for name, module in stock.named_modules():
        if isinstance(module, nn.InstanceNorm2d):
            state[f"{name}.running_mean"] = torch.randn(module.num_features)
            state[f"{name}.running_var"] = torch.rand(module.num_features)
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)
    return state


# -- ResNets ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [None, 0.0], ids=["without dropout", "with dropout"])
@pytest.mark.parametrize("n_blocks", [9, 6, 1, 0])
def test_cyclegan_resnet(tmp_path: Path, n_blocks: int, dropout: float | None) -> None:
    """The second convolution of a block is number 5 in files without dropout, number 6 in those with it."""
    stock = published.randomised(published.resnet(3, n_blocks, dropout=dropout)).eval()
    second = {name.split("conv_block.")[1] for name in stock.state_dict() if "conv_block" in name} - {"1.weight", "1.bias"}
    assert second == (set() if n_blocks == 0 else {f"{5 if dropout is None else 6}.{kind}" for kind in ("weight", "bias")})
    ours = load(tmp_path, stock.state_dict())
    assert ours.config == ResnetConfig.uniform(3, n_blocks)
    assert not ours.training
    assert_same_images(ours, stock)


@pytest.mark.parametrize("dropout", [None, 0.0], ids=["without dropout", "with dropout"])
def test_old_running_statistics_are_dropped(tmp_path: Path, dropout: float | None) -> None:
    stock = published.randomised(published.resnet(2, 9, dropout=dropout)).eval()
    state = with_statistics(stock)
    assert len(state) == 48 + 69
    ours = load(tmp_path, state)
    assert ours.config == ResnetConfig.uniform(2, 9)
    assert_same_images(ours, stock)


def test_channels_are_read_from_the_file(tmp_path: Path) -> None:
    stock = published.randomised(published.resnet(2, 2, in_channels=1, out_channels=4)).eval()
    ours = load(tmp_path, stock.state_dict())
    assert (ours.config.in_channels, ours.config.out_channels) == (1, 4)
    assert_same_images(ours, stock)


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("text", ["2_3_4_2_1_3_3_2", "2_3_4_5_3_2", "2_3_4_5_3_2 legacy"])
def test_gan_compression_sub_networks(tmp_path: Path, text: str, separable: bool) -> None:
    c = [int(part) for part in text.split()[0].split("_")]
    inner = [c[3]] * 9 if len(c) == 6 else [c[3 + block // 3] for block in range(9)]
    if "legacy" in text:
        inner = [c[3] if block % 3 == 0 else c[2] for block in range(9)]
    hidden = tuple(4 * width for width in inner)
    stock = published.Resnet(c[0], 2 * c[1], 4 * c[2], hidden, 2 * c[-2], c[-1], separable=separable)
    published.randomised(stock).eval()
    ours = load(tmp_path, stock.state_dict())
    options = {"legacy": "legacy" in text, "separable": separable}
    assert ours.config == ResnetConfig.parse(text.split()[0], **options)
    assert_same_images(ours, stock)


def test_a_published_supernet_is_cut_by_its_config_str(tmp_path: Path) -> None:
    """Its file is that of the mobile generator at the largest widths; sub-networks are prefix slices."""
    stock = published.randomised(published.resnet(4, separable=True)).eval()
    ours = load(tmp_path, stock.state_dict())
    small = ours.extract(ResnetConfig.parse("2_3_4_2_1_3_3_2"))
    assert torch.equal(small.model[4].weight, stock.model[4].weight[:6, :2])
    assert torch.equal(small.model[19].weight, stock.model[19].weight[:16, :6])
    depthwise, _, pointwise = stock.model[13].conv_block[1].conv
    assert torch.equal(small.model[13].conv_block[1].conv[0].weight, depthwise.weight[:16])
    assert torch.equal(small.model[13].conv_block[1].conv[2].weight, pointwise.weight[:4, :16])


# -- U-Nets ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("levels", [5, 7, 8])
def test_pix2pix_unet(tmp_path: Path, levels: int, norm: str) -> None:
    stock = published.randomised(published.Unet(1, levels, 3, 2, norm)).eval()
    ours = load(tmp_path, stock.state_dict(), batch_stats=False)
    assert ours.config == UnetConfig(1, levels, 3, 2, norm, dropout=0.0)
    assert_same_images(ours, stock, 2**levels, n=1)


def test_old_running_statistics_of_a_unet_are_dropped(tmp_path: Path) -> None:
    stock = published.randomised(published.Unet(1, 5, norm="instance")).eval()
    ours = load(tmp_path, with_statistics(stock))
    assert ours.config.norm == "instance"
    assert_same_images(ours, stock, 32)


# -- batch statistics ------------------------------------------------------------------------------------------------------

BATCH = {
    "resnet": lambda: published.resnet(3, 3, norm="batch", dropout=None),
    "resnet with dropout layer": lambda: published.resnet(3, 3, norm="batch"),
    "mobile": lambda: published.resnet(3, 3, norm="batch", separable=True),
    "unet": lambda: published.Unet(1, 5, dropout=0.0),
}


@pytest.mark.parametrize("name", BATCH)
def test_batch_norm_on_batch_statistics_is_an_affine_instance_norm(tmp_path: Path, name: str) -> None:
    """pix2pix tests with BatchNorm in training mode, one image at a time: exactly InstanceNorm with its scale and shift."""
    stock = published.randomised(BATCH[name]())
    ours = load(tmp_path, stock.state_dict())
    assert ours.config.norm == "instance_affine"
    assert not any("running" in key or "num_batches" in key for key in ours.state_dict())
    assert_same_images(ours, stock.train(), 32, n=1)
    # In double precision nothing but rounding is left, and the images of a batch do not see each other.
    x = images(3, 3, 32, 32, dtype=torch.float64).tanh()
    expected = torch.cat([stock.double()(image[None]) for image in x])
    torch.testing.assert_close(ours.double()(x), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", BATCH)
def test_batch_norm_with_running_statistics_on_request(tmp_path: Path, name: str) -> None:
    stock = published.randomised(BATCH[name]()).eval()
    ours = load(tmp_path, stock.state_dict(), batch_stats=False)
    assert ours.config.norm == "batch"
    assert_same_images(ours, stock, 32)


def test_batch_norm_from_before_batches_were_counted(tmp_path: Path) -> None:
    stock = published.randomised(BATCH["unet"]()).eval()
    state = {name: tensor for name, tensor in stock.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert_same_images(load(tmp_path, state, batch_stats=False), stock, 32)


# -- containers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "module.module."])
@pytest.mark.parametrize("make", [lambda: published.resnet(2, 2, dropout=None), lambda: published.Unet(1, 5, norm="instance")])
def test_prefixes_of_parallel_training(tmp_path: Path, prefix: str, make) -> None:
    stock = published.randomised(make()).eval()
    ours = load(tmp_path, OrderedDict((prefix + name, tensor) for name, tensor in stock.state_dict().items()))
    assert_same_images(ours, stock, 32)


@pytest.mark.parametrize("key", ["state_dict", "model", "generator", "netG"])
def test_state_dicts_inside_a_training_state(tmp_path: Path, key: str) -> None:
    stock = published.randomised(published.resnet(2, 2)).eval()
    ours = load(tmp_path, {"epoch": 200, key: stock.state_dict(), "optimizer": {"lr": 0.0002}})
    assert_same_images(ours, stock)


def test_as_safetensors_without_a_configuration(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    stock = published.randomised(published.resnet(2, 2, dropout=None)).eval()
    save_file(stock.state_dict(), tmp_path / "g.safetensors")
    assert_same_images(gancomp.load_generator(tmp_path / "g.safetensors"), stock)


def test_half_precision(tmp_path: Path) -> None:
    stock = published.randomised(published.resnet(2, 2)).eval().half().float()
    ours = load(tmp_path, {name: tensor.half() for name, tensor in stock.state_dict().items()})
    assert_same_images(ours, stock)


def test_gpu_parameters_and_buffers_are_plain_tensors(tmp_path: Path) -> None:
    """Some files hold ``nn.Parameter`` objects instead of tensors."""
    stock = published.randomised(published.resnet(2, 2)).eval()
    ours = load(tmp_path, OrderedDict(stock.named_parameters()))
    assert_same_images(ours, stock)


def test_loaded_foreign_network_is_saved_as_one_of_ours(tmp_path: Path) -> None:
    stock = published.randomised(BATCH["resnet"]())
    ours = load(tmp_path, {f"module.{name}": tensor for name, tensor in stock.state_dict().items()})
    ours.save(tmp_path / "ours.safetensors")
    again = gancomp.load_generator(tmp_path / "ours.safetensors")
    x = images(1, 3, 16, 16).tanh()
    assert again.config == ours.config
    assert torch.equal(again(x), ours(x))


# -- what is refused -------------------------------------------------------------------------------------------------------


def refusal(tmp_path: Path, value: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, value)
    text = str(caught.value)
    assert text.startswith(str(tmp_path / "latest_net_G.pth: "))
    assert "\n" not in text
    return text.removeprefix(str(tmp_path / "latest_net_G.pth: "))


def test_whole_models_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, nn.Conv2d(1, 1, 1)) == (
        "holds objects of torch.nn.modules.conv.Conv2d instead of a plain state dict of tensors, and loading it would run code "
        "from the file; save model.state_dict() instead"
    )


def test_pickled_code_does_not_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    assert refusal(tmp_path, {"model.1.weight": Harmful()}).startswith("holds objects of posix.mkdir instead of")
    assert not (tmp_path / "harm").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_programs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "program.pt"
    torch.jit.trace(nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2)).save(path)
    with pytest.raises(CheckpointError, match="holds a TorchScript program instead of a plain state dict of tensors"):
        gancomp.load_generator(path)


@pytest.mark.parametrize("value", [{}, [], 5, torch.zeros(3), {"epoch": 3}, {"state_dict": {}}, {"a": torch.zeros(1), "b": 2}])
def test_no_state_dict(tmp_path: Path, value: object) -> None:
    assert refusal(tmp_path, value) == "holds no state dict (a mapping of names to tensors)"


def test_other_architectures(tmp_path: Path) -> None:
    classifier = nn.Sequential(OrderedDict(features=nn.Conv2d(3, 8, 3), classifier=nn.Linear(8, 10)))
    assert refusal(tmp_path, classifier.state_dict()) == (
        "not a generator of a known layout (ResNet or U-Net); its tensors begin with: "
        "classifier.bias, classifier.weight, features.bias, features.weight"
    )
    assert refusal(tmp_path, published.Patch(6, 4, 3, "instance").state_dict()).startswith("not a generator of a known layout")
    assert refusal(tmp_path, published.Patch(6, 4, 0, "batch").state_dict()).startswith("not a generator of a known layout")


@pytest.mark.parametrize(
    ("mangle", "message"),
    [
        (lambda s: s.pop("model.4.weight"), "tensor model.4.weight is missing from the generator"),
        (lambda s: s.pop("model.10.conv_block.6.weight"), "do not fit a resnet network (Missing key(s)"),
        (lambda s: s.update({"model.7.weight": torch.zeros(8)}), "tensor model.7.weight has shape [8]: expected 4 dimensions"),
        (lambda s: s.update({"model.1.weight": torch.zeros(0, 3, 7, 7)}), "tensor model.1.weight has shape [0, 3, 7, 7]"),
        (lambda s: s.update({"model.4.weight": torch.zeros(4, 9, 3, 3)}), "size mismatch for model.4.weight"),
        (lambda s: s.update({"model.30.weight": torch.zeros(2)}), 'Unexpected key(s) in state_dict: "model.30.weight"'),
        (lambda s: [s.pop(name) for name in list(s) if name.startswith("model.10.")], "residual blocks at indices [11]"),
    ],
)
def test_incomplete_and_strange_generators(tmp_path: Path, mangle, message: str) -> None:
    state = published.resnet(2, 2).state_dict()
    mangle(state)
    assert message in refusal(tmp_path, state)


def test_three_downsamplings(tmp_path: Path) -> None:
    state = published.resnet(2, 1).state_dict()
    moved = {name.replace("model.10.", "model.13."): tensor for name, tensor in state.items()}
    assert "residual blocks at indices [13]: expected consecutive ones from 10" in refusal(tmp_path, moved)


def test_converting_copies_no_tensor() -> None:
    state = published.resnet(2, 2, dropout=None).state_dict()
    arch, config, tensors = convert_state(state)
    assert (arch, config) == ("resnet", ResnetConfig.uniform(2, 2))
    assert {t.data_ptr() for t in tensors.values()} == {t.data_ptr() for t in state.values()}
