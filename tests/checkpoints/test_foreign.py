"""Files of other projects: every layout is built here from stock layers, loaded, and compared with its own forward pass."""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gancomp
from gancomp.checkpoints import Assumptions, convert_state, load_network, load_subnetwork
from gancomp.errors import CheckpointError, ConfigError
from gancomp.models import Generator, ResnetConfig, UnetConfig
from gancomp.testing import assert_accurate, images

from ..models import published

RUNNING = Assumptions(batch_stats=False)


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
def test_a_resnet_without_norm_is_told_from_instance_norm_by_its_biases(tmp_path: Path, separable: bool) -> None:
    stock = published.randomised(published.resnet(3, 2, norm="none", dropout=None, separable=separable)).eval()
    ours = load(tmp_path, published.without_biases(stock))
    assert ours.config == ResnetConfig.uniform(3, 2, norm="none", separable=separable)
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


@pytest.mark.parametrize("text", ["2_3_4_2_1_3_3_2", "4_4_4_4_4_4_4_4", "2_3_4_1_3_2"])
def test_a_published_supernet_is_cut_by_its_config_str(tmp_path: Path, text: str) -> None:
    """Its file is that of the mobile generator at the largest widths; a sub-network is the prefix of every tensor."""
    full = published.randomised(published.resnet(4, separable=True)).eval()
    torch.save(full.state_dict(), tmp_path / "super.pth")
    channels = tuple(int(part) for part in text.split("_"))
    ours = load_subnetwork(tmp_path / "super.pth", channels)
    assert ours.config == ResnetConfig.parse(text)
    c = [*channels[:3], *(channels[3:-2] if len(channels) == 8 else channels[3:4] * 3), *channels[-2:]]
    hidden = tuple(4 * width for width in c[3:6] for _ in range(3))
    stock = published.Resnet(c[0], 2 * c[1], 4 * c[2], hidden, 2 * c[6], c[7], separable=True).eval()
    shapes = published.shapes(stock)
    stock.load_state_dict({name: full.state_dict()[name][tuple(map(slice, shape))] for name, shape in shapes.items()})
    assert_same_images(ours, stock)


def test_what_is_no_supernet_is_not_cut(tmp_path: Path) -> None:
    """A dense generator, a compressed one, a U-Net, a discriminator; and configurations that a supernet does not hold."""
    compressed = published.Resnet(2, 4, 8, (8, 8, 4), 4, 2, separable=True)
    others = (published.resnet(2, 3), compressed, published.Unet(1, 5), published.Patch(6, 2, 1, "instance"))
    for network in others:
        torch.save(network.state_dict(), tmp_path / "n.pth")
        with pytest.raises(CheckpointError, match=r"n\.pth: holds no supernet; expected one of this project, or GAN Compre"):
            load_subnetwork(tmp_path / "n.pth", (2,) * 8)
    torch.save(published.resnet(4, 3, separable=True).state_dict(), tmp_path / "n.pth")
    for channels, message in (((4,) * 7 + (5,), "last=5: above the supernet's 4"), ((4, 4), "of 3 blocks takes 8 or 6")):
        with pytest.raises(ConfigError, match=message):
            load_subnetwork(tmp_path / "n.pth", channels)


# -- U-Nets ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("levels", [5, 7, 8])
def test_pix2pix_unet(tmp_path: Path, levels: int, norm: str) -> None:
    stock = published.randomised(published.Unet(1, levels, 3, 2, norm)).eval()
    ours = load(tmp_path, stock.state_dict(), assume=RUNNING)
    assert ours.config == UnetConfig(1, levels, 3, 2, norm, dropout=0.0)
    assert_same_images(ours, stock, 2**levels, n=1)


def test_a_unet_without_norm(tmp_path: Path) -> None:
    stock = published.randomised(published.Unet(1, 6, norm="none")).eval()
    ours = load(tmp_path, published.without_biases(stock))
    assert ours.config == UnetConfig(1, 6, norm="none", dropout=0.0)
    assert_same_images(ours, stock, 64, n=1)


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
    ours = load(tmp_path, stock.state_dict(), assume=RUNNING)
    assert ours.config.norm == "batch"
    assert_same_images(ours, stock, 32)


def test_batch_norm_from_before_batches_were_counted(tmp_path: Path) -> None:
    stock = published.randomised(BATCH["unet"]()).eval()
    state = {name: tensor for name, tensor in stock.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert_same_images(load(tmp_path, state, assume=RUNNING), stock, 32)


# -- containers ------------------------------------------------------------------------------------------------------------


def test_batch_norm_after_convolutions_with_biases(tmp_path: Path) -> None:
    """So the first version of pytorch-CycleGAN-and-pix2pix built them; the statistics of an image take the biases out again."""
    stock = published.randomised(BATCH["resnet"]())
    state = stock.state_dict()
    biased = [name for name, t in state.items() if t.dim() == 4 and name.replace("weight", "bias") not in state]
    for name in biased:
        channels = state[name].shape[1 if name in ("model.13.weight", "model.16.weight") else 0]
        state[name.replace("weight", "bias")] = 0.1 * torch.randn(channels)
    assert len(biased) == 3 + 6 + 2
    ours = load(tmp_path, state)
    x = images(1, 3, 16, 16, dtype=torch.float64).tanh()
    torch.testing.assert_close(ours.double()(x), stock.double().train()(x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("prefix", ["module.", "module.module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("make", [lambda: published.resnet(2, 2, dropout=None), lambda: published.Unet(1, 5, norm="instance")])
def test_prefixes_of_parallel_and_compiled_training(tmp_path: Path, prefix: str, make) -> None:
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


def refusal(tmp_path: Path, value: object, loader: Callable[[Path], nn.Module] = gancomp.load_generator) -> str:
    torch.save(value, tmp_path / "latest_net_G.pth")
    with pytest.raises(CheckpointError) as caught:
        loader(tmp_path / "latest_net_G.pth")
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
        "not a network of a known layout (ResNet, U-Net or SPADE generator, patch discriminator); its tensors begin with: "
        "classifier.bias, classifier.weight, features.bias, features.weight"
    )


def test_the_state_of_an_optimizer(tmp_path: Path) -> None:
    optimizer = torch.optim.Adam(published.resnet(2, 1).parameters())
    assert refusal(tmp_path, optimizer.state_dict()) == (
        "holds an optimizer's state, expected a network's state dict (a mapping of names to tensors)"
    )


def test_numbers_that_are_not_floating_point(tmp_path: Path) -> None:
    state = published.resnet(2, 1).state_dict()
    state["model.4.weight"] = state["model.4.weight"].to(torch.int8)
    assert refusal(tmp_path, state) == "tensor model.4.weight is of torch.int8: expected floating-point numbers"


@pytest.mark.parametrize(
    ("mangle", "message"),
    [
        (lambda s: s.pop("model.4.weight"), "tensor model.4.weight is missing from the network"),
        (lambda s: s.pop("model.4.bias"), 'do not fit a resnet network (Missing key(s) in state_dict: "model.4.bias"'),
        (lambda s: s.pop("model.19.bias"), 'Missing key(s) in state_dict: "model.19.bias"'),
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


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
EVERY = {  # and the tensors that may be wrong, since nothing uses them
    "resnet": (lambda: published.resnet(2, 1, norm="batch", dropout=None), STATISTICS),
    "mobile": (lambda: published.resnet(2, 1, separable=True), ()),
    "unet": (lambda: published.Unet(1, 5, norm="instance"), ()),
    "patch": (lambda: published.Patch(6, 2, 2, "batch"), ("num_batches_tracked",)),
    "pixel": (lambda: published.Patch(6, 2, 0, "instance"), ()),
}


@pytest.mark.parametrize("name", EVERY)
def test_whatever_is_wrong_with_a_tensor_is_one_line(tmp_path: Path, name: str) -> None:
    """Every tensor in turn is missing, has another name, or another shape."""
    make, unused = EVERY[name]
    changes = (
        lambda state, key: state.pop(key),
        lambda state, key: state.update({f"{key}x": state.pop(key)}),
        lambda state, key: state.update({key: state[key].flatten()[:, None]}),
        lambda state, key: state.update({key: state[key].flatten()[:0]}),
        lambda state, key: state.update({key: torch.cat([torch.atleast_1d(state[key])] * 2)}),
    )
    whole = make().state_dict()
    for key in whole:
        if not key.endswith(unused or "no such name"):
            for change in changes:
                state = dict(whole)
                change(state, key)
                refusal(tmp_path, state, load_network)


def test_three_downsamplings(tmp_path: Path) -> None:
    state = published.resnet(2, 1).state_dict()
    moved = {name.replace("model.10.", "model.13."): tensor for name, tensor in state.items()}
    assert "residual blocks at indices [13]: expected consecutive ones from 10" in refusal(tmp_path, moved)


def test_a_missing_bias_or_scale_of_a_batch_norm_is_not_made_up(tmp_path: Path) -> None:
    """Convolutions get the zero bias that BatchNorm left out; what else is missing stays missing."""
    for name in ("model.2.bias", "model.10.conv_block.7.weight"):
        state = BATCH["resnet with dropout layer"]().state_dict()
        del state[name]
        assert f'Missing key(s) in state_dict: "{name}"' in refusal(tmp_path, state)


def test_converting_copies_no_tensor() -> None:
    state = published.resnet(2, 2, dropout=None).state_dict()
    found = convert_state(state)
    assert (found.arch, found.config) == ("resnet", ResnetConfig.uniform(2, 2))
    assert {t.data_ptr() for t in found.tensors.values()} == {t.data_ptr() for t in state.values()}


IMAGE_STATISTICS = "BatchNorm on the statistics of each image, as affine InstanceNorm"
FOUND = [
    (
        published.resnet(2, dropout=None),
        "ResNet generator of 9 dense blocks, base width 2, InstanceNorm, without dropout layers",
    ),
    (
        published.resnet(2, 6, norm="batch"),
        f"ResNet generator of 6 dense blocks, base width 2, {IMAGE_STATISTICS}, with dropout layers",
    ),
    (
        published.resnet(2, 3, separable=True),
        "ResNet generator of 3 separable blocks, base width 2, InstanceNorm, with dropout layers",
    ),
    (
        published.Resnet(2, 6, 16, (8,) * 3 + (4,) * 3 + (12,) * 3, 6, 2, separable=True),
        "ResNet generator of 9 separable blocks, configuration 2_3_4_2_1_3_3_2, InstanceNorm, with dropout layers",
    ),
    (
        published.Resnet(2, 6, 16, (20, 16, 16) * 3, 6, 2, separable=True),
        "ResNet generator of 9 separable blocks, configuration 2_3_4_5_3_2 in the legacy reading, InstanceNorm, "
        "with dropout layers",
    ),
    (
        published.Resnet(2, 5, 16, (20,) * 9, 6, 2),
        "ResNet generator of 9 dense blocks, widths of no configuration, InstanceNorm, with dropout layers",
    ),
    (published.Unet(1, 7), f"U-Net generator of 7 levels (unet_128), base width 1, {IMAGE_STATISTICS}"),
    (
        published.Patch(6, 4, 3, "batch"),
        "patch discriminator of 3 layers, base width 4, 6 input channels, BatchNorm on running statistics",
    ),
    (published.Patch(3, 4, 0, "instance"), "pixel discriminator, base width 4, 3 input channels, InstanceNorm"),
]


@pytest.mark.parametrize(("network", "found"), FOUND, ids=[found.split(",")[0] for _, found in FOUND])
def test_what_was_found_in_words(network: nn.Module, found: str) -> None:
    assert convert_state(network.state_dict()).found == found


def test_old_statistics_are_mentioned() -> None:
    state = with_statistics(published.resnet(2, 1))
    assert "InstanceNorm (statistics of early PyTorch versions left out)" in convert_state(state).found
