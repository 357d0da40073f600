"""separable_resblock: the reference against PyTorch, the native kernels against the reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gancomp import BackendError, ConfigError, ops
from gancomp.ops import reference
from gancomp.ops.resblock import SeparableResblockCpu
from gancomp.testing import (
    LAYOUTS,
    allocations,
    assert_accurate,
    forward_backward,
    images,
    laid_out,
    poisoned_outputs,
    unchanged,
)

EPS = 1e-5
KEEP = 0.6
# (N, C, H, W), hidden: the smallest planes, many of them, as the largest of few errors says little; rows shorter and longer
# than any vector; several images in one step and in many; channels beside any tile of registers, and more than are packed at a
# time.
SHAPES = [
    ((16, 6, 2, 2), 5),
    ((12, 5, 3, 4), 7),
    ((8, 4, 2, 9), 5),
    ((8, 3, 9, 2), 7),
    ((4, 5, 5, 7), 11),
    ((1, 16, 16, 16), 24),
    ((2, 33, 9, 33), 17),
    ((3, 7, 13, 31), 50),
    ((1, 260, 11, 13), 270),
]
NAMES = ("x", "depthwise1", "pointwise1", "depthwise2", "pointwise2")


def stock(mask: Tensor | None, hidden: int) -> Callable[..., Tensor]:
    """The op by PyTorch's own functions, in the dtype of its inputs; ``mask`` says what dropout lets through."""

    def half(x: Tensor, depthwise: Tensor, pointwise: Tensor, out: int) -> Tensor:
        channels = x.shape[1]
        padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
        filtered = F.instance_norm(F.conv2d(padded, depthwise[:channels], groups=channels), eps=EPS)
        return F.instance_norm(F.conv2d(filtered, pointwise[:out, :channels]), eps=EPS)

    def function(x: Tensor, depthwise1: Tensor, pointwise1: Tensor, depthwise2: Tensor, pointwise2: Tensor) -> Tensor:
        h = F.relu(half(x, depthwise1, pointwise1, hidden))
        h = h if mask is None else h * mask / KEEP
        return x + half(h, depthwise2, pointwise2, x.shape[1])

    return function


def native(mask: Tensor | None, hidden: int) -> Callable[..., Tensor]:
    """The native kernels with a mask of the caller's."""
    scale = 1.0 if mask is None else 1 / KEEP
    return lambda *tensors: SeparableResblockCpu.apply(*tensors, mask, scale, hidden, EPS)


def specified(mask: Tensor | None, hidden: int) -> Callable[..., Tensor]:
    scale = 1.0 if mask is None else 1 / KEEP
    return lambda *tensors: reference.separable_resblock(*tensors, mask, scale, hidden, EPS)


def weights(channels: int, hidden: int, seed: int = 0) -> list[Tensor]:
    shapes = (channels, 1, 3, 3), (hidden, channels, 1, 1), (hidden, 1, 3, 3), (channels, hidden, 1, 1)
    return [images(*shape, seed=10 * seed + index) for index, shape in enumerate(shapes)]


def inputs(
    shape: tuple[int, ...], hidden: int, dropout: bool = False, layout: str = "contiguous"
) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """A gradient of y, [x and the weights], and a mask.

    Within rounding of ReLU's kink either gradient is right: the weights are such that no value lies there.
    """
    n, channels, *size = shape
    x = images(*shape, layout=layout, seed=1)
    for seed in range(100):
        parameters = weights(channels, hidden, seed)
        wide = [tensor.double() for tensor in (x, *parameters)]
        filtered = reference.reflect_pad_depthwise_conv3x3(wide[0], wide[1], None)
        mixed = F.conv2d(F.instance_norm(filtered, eps=EPS), wide[2])
        if F.instance_norm(mixed, eps=EPS).abs().min() > 2e-5:
            break
    else:
        raise AssertionError("no weights keep away from the kink")
    generator = torch.Generator().manual_seed(5)
    mask = (torch.rand((n, hidden, *size), generator=generator) < KEEP).to(torch.uint8) if dropout else None
    return images(*shape, layout=layout, seed=3), [x, *parameters], mask


def with_inactive_parts(weight: Tensor) -> Tensor:
    """A full weight of NaN whose first channels are ``weight``."""
    rows, columns, *kernel = weight.shape
    full = weight.new_full((rows + 3, columns if kernel == [3, 3] else columns + 5, *kernel), float("nan"))
    full[:rows, :columns] = weight
    return full


# Dimensions of the tensors that turn together without changing what is computed; but the order of the sums changes.
TURNS = {
    "rows": {"x": 2, "depthwise1": 2, "depthwise2": 2, "mask": 2},
    "columns": {"x": 3, "depthwise1": 3, "depthwise2": 3, "mask": 3},
    "stream": {"x": 1, "depthwise1": 0, "pointwise1": 1, "pointwise2": 0},
    "hidden": {"pointwise1": 0, "depthwise2": 0, "pointwise2": 1, "mask": 1},
}


def turned(tensor: Tensor, name: str, turns: tuple[str, ...]) -> Tensor:
    return tensor.flip([TURNS[turn][name] for turn in turns if name in TURNS[turn]])


def measured(
    grad: Tensor, tensors: list[Tensor], mask: Tensor | None, hidden: int, exact: list[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """PyTorch's results and the exact ones. Of a plane of few pixels, divided by almost nothing, one error says little: the
    largest of sixteen orders of the same sums is taken."""
    worst: list[Tensor] = []
    for turns in itertools.chain.from_iterable(itertools.combinations(TURNS, count) for count in range(5)):
        inputs = [turned(tensor, name, turns) for name, tensor in zip(NAMES, tensors, strict=True)]
        other = None if mask is None else turned(mask, "mask", turns)
        results = forward_backward(stock(other, hidden), turned(grad, "x", turns), *inputs)
        results = [turned(result, name, turns) for name, result in zip(("x", *NAMES), results, strict=True)]
        worst = [
            max(pair, key=lambda result, truth=truth: float((result.double() - truth).abs().max()))
            for truth, *pair in zip(exact, results, worst or results, strict=True)
        ]
    return zip(worst, exact, strict=True)


def check(actual: list[Tensor], grad: Tensor, tensors: list[Tensor], mask: Tensor | None, hidden: int) -> None:
    """Compare a result and gradients with the float64 reference; PyTorch's own error is the measure."""
    exact = forward_backward(specified(mask, hidden), grad.double(), *(tensor.double() for tensor in tensors))
    names = ["y", *(f"gradient of {name}" for name in NAMES)]
    for name, ours, (measure, truth) in zip(names, actual, measured(grad, tensors, mask, hidden, exact), strict=True):
        assert_accurate(ours, measure, truth, name)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize(("shape", "hidden"), SHAPES)
def test_the_reference_is_pytorch_in_double(shape, hidden, dropout):
    grad, tensors, mask = inputs(shape, hidden, dropout)
    grad, tensors = grad.double(), [tensor.double() for tensor in tensors]
    ours = forward_backward(specified(mask, hidden), grad, *tensors)
    for mine, other in zip(ours, forward_backward(stock(mask, hidden), grad, *tensors), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("dropout", [False, True])
def test_gradients_of_the_reference(dropout):
    _, tensors, mask = inputs((2, 2, 3, 4), 3, dropout)
    leaves = [tensor.double().requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(specified(mask, 3), leaves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("master", [False, True])
def test_the_reference_rounds_16_bits_once(dtype, master):
    _, (x, *parameters), mask = inputs((2, 3, 5, 7), 4, True)
    parameters = parameters if master else [weight.to(dtype) for weight in parameters]
    y = specified(mask, 4)(x.to(dtype), *parameters)
    wide = specified(mask, 4)(x.to(dtype).float(), *(weight.float() for weight in parameters))
    assert torch.equal(y, wide.to(dtype))


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize(("shape", "hidden"), SHAPES)
def test_native(isa, shape, hidden, dropout):
    grad, tensors, mask = inputs(shape, hidden, dropout)
    with unchanged(grad, *tensors, mask), poisoned_outputs():
        actual = forward_backward(native(mask, hidden), grad, *tensors)
    check(actual, grad, tensors, mask, hidden)


@pytest.mark.parametrize(("shape", "hidden"), [((1, 2, 3, 513), 2), ((2, 2, 5, 1030), 3), ((1, 3, 70, 65), 2)])
def test_large_planes(isa, shape, hidden):
    # Wider than the columns that are worked on at a time, by one and by more; and more pixels than one strip of a product.
    grad, tensors, mask = inputs(shape, hidden, True)
    with poisoned_outputs():
        actual = forward_backward(native(mask, hidden), grad, *tensors)
    check(actual, grad, tensors, mask, hidden)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(isa, layout):
    grad, tensors, mask = inputs((2, 5, 6, 7), 4, True, layout)
    with unchanged(grad, *tensors), poisoned_outputs():
        actual = forward_backward(native(mask, 4), grad, *tensors)
        dense = forward_backward(native(mask, 4), grad.contiguous(), *(tensor.contiguous() for tensor in tensors))
    check(actual, grad, tensors, mask, 4)
    for one, other in zip(actual, dense, strict=True):
        assert torch.equal(one, other), "the layout changes the result"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_result_is_contiguous(backend, layout):
    x = images(2, 3, 4, 5, layout=layout)
    for grad in (False, True):
        assert ops.separable_resblock(x.requires_grad_(grad), *weights(3, 4), backend=backend).is_contiguous()


def test_inactive_channels_are_neither_read_nor_given_a_gradient(isa):
    grad, (x, *parameters), mask = inputs((2, 5, 6, 9), 11, True)
    active = forward_backward(native(mask, 11), grad, x, *parameters)
    with poisoned_outputs():
        full = forward_backward(native(mask, 11), grad, x, *map(with_inactive_parts, parameters))
    for name, one, other in zip(("y", *NAMES), active, full, strict=True):
        assert torch.equal(one, other[: one.shape[0], : one.shape[1]]), name
        rest = other.clone()
        rest[: one.shape[0], : one.shape[1]] = 0
        assert torch.equal(rest, torch.zeros_like(other)), name


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_hidden_channels_are_those_of_the_weight_by_default(backend):
    x, parameters = images(1, 3, 5, 6), weights(3, 4)
    y = ops.separable_resblock(x, *parameters, backend=backend)
    assert torch.equal(y, ops.separable_resblock(x, *parameters, hidden=4, backend=backend))
    fewer = ops.separable_resblock(x, *parameters, hidden=2, backend=backend)
    sliced = [parameters[0], parameters[1][:2], parameters[2][:2], parameters[3][:, :2]]
    assert torch.equal(fewer, ops.separable_resblock(x, *sliced, backend=backend))
    assert not torch.equal(y, fewer)


def test_weights_may_be_strided_views(isa):
    grad, (x, *parameters), mask = inputs((2, 5, 6, 9), 11, True)
    expected = forward_backward(native(mask, 11), grad, x, *parameters)
    transposed = [weight.transpose(0, 1).contiguous().transpose(0, 1) for weight in parameters]
    spread = [torch.stack([weight, weight * float("nan")], -1)[..., 0] for weight in parameters]
    for views in (transposed, spread):
        assert not views[1].is_contiguous()
        for one, other in zip(forward_backward(native(mask, 11), grad, x, *views), expected, strict=True):
            assert torch.equal(one, other)


def test_no_images(isa):
    with poisoned_outputs():
        y, grad_x, *gradients = forward_backward(
            native(None, 4), torch.empty(0, 3, 5, 6), torch.empty(0, 3, 5, 6), *map(with_inactive_parts, weights(3, 4))
        )
    assert y.shape == grad_x.shape == (0, 3, 5, 6)
    for gradient in gradients:
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_a_nan_stays_visible_in_its_image_alone(isa):
    x = images(2, 3, 9, 20)
    x[0, 1, 4, 10] = float("nan")
    y = native(None, 4)(x, *weights(3, 4))
    assert y[0].isnan().all()
    assert y[1].isfinite().all()


@pytest.mark.parametrize("wanted", ["x", "depthwise1", "pointwise1", "depthwise2", "pointwise2", "weights"])
def test_only_the_wanted_gradients(isa, wanted):
    grad, tensors, mask = inputs((2, 3, 5, 12), 4, True)
    full = forward_backward(native(mask, 4), grad, *tensors)
    wants = [wanted == name or (wanted == "weights" and name != "x") for name in NAMES]
    leaves = [tensor.detach().requires_grad_(want) for tensor, want in zip(tensors, wants, strict=True)]
    with poisoned_outputs():
        native(mask, 4)(*leaves).backward(grad)
    for leaf, want, expected in zip(leaves, wants, full[1:], strict=True):
        assert torch.equal(leaf.grad, expected) if want else leaf.grad is None


def test_the_result_is_the_same_without_gradients(isa):
    x, parameters = images(2, 5, 6, 9), weights(5, 11)
    y = ops.separable_resblock(x, *parameters, backend="cpu")
    leaves = [tensor.clone().requires_grad_() for tensor in (x, *parameters)]
    kept = ops.separable_resblock(*leaves, backend="cpu")
    assert kept.requires_grad
    assert torch.equal(kept, y)
    with torch.no_grad():
        assert torch.equal(ops.separable_resblock(*leaves, backend="cpu"), y)


def test_threads_do_not_change_a_bit(isa):
    grad, tensors, mask = inputs((3, 5, 41, 37), 11, True)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(forward_backward(native(mask, 11), grad, *tensors))
    for other in results[1:]:
        for one, another in zip(results[0], other, strict=True):
            assert torch.equal(one, another)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_dropout(backend):
    x, parameters = images(2, 3, 16, 16), weights(3, 40)

    def run(dropout: float, seed: int | None = None) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return ops.separable_resblock(x, *parameters, dropout=dropout, eps=EPS, generator=generator, backend=backend)

    mask = torch.empty(2, 40, 16, 16, dtype=torch.uint8)
    mask.bernoulli_(1 - 0.25, generator=torch.Generator().manual_seed(7))
    assert 0.74 < mask.float().mean() < 0.76
    torch.testing.assert_close(run(0.25, 7), reference.separable_resblock(x, *parameters, mask, 1 / 0.75, 40, EPS))
    assert torch.equal(run(0.25, 7), run(0.25, 7))
    assert not torch.equal(run(0.25, 7), run(0.25, 8))
    torch.manual_seed(3)
    first = run(0.25)
    assert not torch.equal(first, run(0.25))
    torch.manual_seed(3)
    assert torch.equal(first, run(0.25))
    before = torch.random.get_rng_state()
    run(0.0)
    assert torch.equal(torch.random.get_rng_state(), before), "random numbers are drawn without dropout"


def test_the_gradient_cannot_be_differentiated_again():
    x = images(1, 2, 4, 4).requires_grad_()
    y = ops.separable_resblock(x, *weights(2, 3), backend="cpu")
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_nothing_is_copied():
    # Forwards the result, what is kept and the workspace; backwards the gradients and the workspace: no slice of a weight.
    channels, hidden, pixels = 5, 7, 16 * 16
    wide = images(2, 8, 16, 16)
    parameters = [weight.requires_grad_() for weight in map(with_inactive_parts, weights(channels, hidden))]
    of_x, of_hidden, statistics = 2 * channels * pixels * 4, 2 * hidden * pixels * 4, 2 * 2 * (channels + hidden) * 2 * 4
    # The workspace: planes an odd number of cache lines apart; sums of two weights in 8 parts, of 8 rows and 48 columns.
    work_x, work_hidden, sums = 2 * channels * 17 * 64, 2 * hidden * 17 * 64, 2 * 8 * 8 * 48 * 4
    results: list[Tensor] = []

    def forward(x: Tensor) -> None:
        results.append(ops.separable_resblock(x, *parameters, hidden=hidden, backend="cpu"))

    with torch.no_grad():
        assert allocations(lambda: forward(wide[:, :channels])) == [of_x, 2 * work_hidden]
    leaf = wide.requires_grad_()
    x = leaf[:, :channels]
    assert allocations(lambda: forward(x)) == [of_x, of_hidden, of_x, statistics, work_hidden]
    grad = images(2, channels, 16, 16, seed=1)
    gradients: list[Tensor] = []
    made = allocations(lambda: gradients.extend(torch.autograd.grad(results[1], [x, *parameters], grad, retain_graph=True)))
    full = [weight.numel() * 4 for weight in parameters]
    assert made == [of_x, *full, work_x + 2 * work_hidden + sums]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        forward(x)
        torch.autograd.backward(results[2], grad, inputs=parameters)
    names = {event.key for event in profile.key_averages()}
    assert "gancomp::separable_resblock_backward" in names
    assert {name for name in names if any(part in name for part in ("copy", "clone", "contiguous", "slice", "zero"))} == set()


def test_less_than_half_of_pytorch_is_kept():
    def kept(function: Callable[..., Tensor]) -> int:
        """Bytes of the tensors that the graph keeps beside the inputs, each memory once."""
        leaves = [tensor.clone().requires_grad_() for tensor in (images(2, 8, 16, 16), *weights(8, 12))]
        own = {leaf.untyped_storage().data_ptr() for leaf in leaves}
        found: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = function(*leaves)
        assert y.requires_grad
        return sum(found.values())

    ours, theirs = kept(native(None, 12)), kept(stock(None, 12))
    assert ours == (2 * 8 * 256 + 2 * 12 * 256 + 2 * 2 * 20 * 2) * 4
    assert ours < theirs / 2


@pytest.mark.filterwarnings("ignore:gancomp.*autograd kernel was not registered")  # its autograd is the Function outside
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(layout, requires_grad):
    x, grad = (images(2, 3, 5, 4, layout=layout, seed=seed).requires_grad_(requires_grad) for seed in (1, 2))
    parameters = [weight.requires_grad_(requires_grad) for weight in map(with_inactive_parts, weights(3, 4))]
    with torch.no_grad():
        for weight in parameters:
            weight.nan_to_num_(0.5)
    forward, backward = torch.ops.gancomp.separable_resblock.default, torch.ops.gancomp.separable_resblock_backward.default
    plain = layout == "contiguous"
    for mask in [None] + [torch.ones(2, 4, 5, 4, dtype=torch.uint8)] * plain:
        torch.library.opcheck(forward, (x, *parameters, mask, 1.0, 4, EPS, True))
        kept = [tensor.detach() for tensor in forward(x, *parameters, mask, 1.0, 4, EPS, True)[1:]]
        torch.library.opcheck(backward, (grad, x, *parameters, mask, 1.0, *kept, True, True))
    if plain and requires_grad:
        torch.library.opcheck(forward, (x, *parameters, None, 1.0, 4, EPS, False))
        for needs in ((False, True), (True, False)):
            torch.library.opcheck(backward, (grad, x, *parameters, None, 1.0, *kept, *needs))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_compile_takes_it_whole(layout):
    grad, tensors, _ = inputs((2, 3, 5, 4), 4, False, layout)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *t: ops.separable_resblock(*t, eps=EPS), backend="aot_eager", fullgraph=True)
    for one, other in zip(
        forward_backward(compiled, grad, *tensors), forward_backward(native(None, 4), grad, *tensors), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_the_float32_kernels(dtype):
    grad, (x, *parameters), _ = inputs((2, 3, 5, 7), 4)
    small = x.to(dtype)
    with torch.autocast("cpu", dtype):
        y, *gradients = forward_backward(lambda *t: ops.separable_resblock(*t, eps=EPS), grad, small, *parameters)
        assert "cpu: runs" in ops.explain("separable_resblock", small, *parameters)
    assert torch.equal(y, native(None, 4)(small.float(), *parameters))
    assert [gradient.dtype for gradient in gradients] == [dtype, *[torch.float32] * 4]


X, WEIGHTS = torch.zeros(2, 3, 4, 5), weights(3, 4)


def replaced(name: str, value: Tensor) -> list[Tensor]:
    return [value if other == name else tensor for other, tensor in zip(NAMES, [X, *WEIGHTS], strict=True)]


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [
        (replaced("x", X[0]), {}, r"x is torch.float32 \[3, 4, 5\]"),
        (replaced("x", X.long()), {}, "x is torch.int64"),
        (replaced("x", X[:, :, :1]), {}, r"x of shape \[2, 3, 1, 5\]: expected channels, and height and width of at least 2"),
        (replaced("x", X[:, :0]), {}, r"x of shape \[2, 0, 4, 5\]"),
        (replaced("depthwise1", WEIGHTS[0][:2]), {}, r"depthwise1 of shape \[2, 1, 3, 3\], expected at least \[3, 1, 3, 3\]"),
        (replaced("depthwise1", torch.zeros(3, 3, 3, 3)), {}, r"depthwise1 of shape \[3, 3, 3, 3\]"),
        (replaced("pointwise1", torch.zeros(4, 2, 1, 1)), {}, r"pointwise1 of shape \[4, 2, 1, 1\], expected at least \[4, 3"),
        (replaced("pointwise1", torch.zeros(4, 3)), {}, r"pointwise1 of shape \[4, 3\], expected \[hidden, C, 1, 1\]"),
        (replaced("depthwise2", WEIGHTS[2][:3]), {}, r"depthwise2 of shape \[3, 1, 3, 3\], expected at least \[4, 1, 3, 3\]"),
        (replaced("pointwise2", WEIGHTS[3][:2]), {}, r"pointwise2 of shape \[2, 4, 1, 1\], expected at least \[3, 4, 1, 1\]"),
        (replaced("pointwise2", torch.zeros(3, 4, 3, 3)), {}, r"pointwise2 of shape \[3, 4, 3, 3\]"),
        (replaced("pointwise2", WEIGHTS[3].half()), {}, "pointwise2 is torch.float16 on cpu, x is torch.float32"),
        (replaced("depthwise2", WEIGHTS[2].to("meta")), {}, "depthwise2 is torch.float32 on meta"),
        (replaced("x", X.double()), {}, "depthwise1 is torch.float32 on cpu, x is torch.float64"),
        ([X, *WEIGHTS], {"hidden": 5}, "hidden=5, expected 1 to 4"),
        ([X, *WEIGHTS], {"hidden": 0}, "hidden=0, expected 1 to 4"),
        ([X, *WEIGHTS], {"dropout": 1.0}, "dropout=1.0, expected at least 0 and below 1"),
        ([X, *WEIGHTS], {"dropout": -0.1}, "dropout=-0.1"),
        ([X, *WEIGHTS], {"eps": 0.0}, "eps=0.0, expected a number above 0"),
        ([X, *WEIGHTS], {"backend": "gpu"}, "backend='gpu': expected auto, cuda, cpu, triton, reference"),
    ],
)
def test_bad_arguments_are_named(args, kwargs, named):
    with pytest.raises(ConfigError, match=named):
        ops.separable_resblock(*args, **kwargs)
    with pytest.raises(ConfigError, match=named):
        ops.explain("separable_resblock", *args, **kwargs)


def test_a_named_backend_does_not_fall_back():
    doubles = [tensor.double() for tensor in (X, *WEIGHTS)]
    with pytest.raises(BackendError, match="separable_resblock: backend 'cpu' cannot run this call: x is float64"):
        ops.separable_resblock(*doubles, backend="cpu")
    assert ops.separable_resblock(*doubles).dtype == torch.float64


def test_the_native_op_checks_its_own_inputs():
    forward, backward = torch.ops.gancomp.separable_resblock, torch.ops.gancomp.separable_resblock_backward
    for args, message in (
        (replaced("x", X.double()), "x must be float32"),
        (replaced("x", X[:, :, :1]), "x needs h, w >= 2"),
        (replaced("depthwise1", WEIGHTS[0][:2]), "weight must be"),
        (replaced("pointwise1", WEIGHTS[1][:3]), "pointwise1 must be a pointwise weight"),
        (replaced("pointwise2", torch.zeros(3, 4, 3, 3)), "pointwise2 must be a pointwise weight"),
    ):
        with pytest.raises(RuntimeError, match=message):
            forward(*args, None, 1.0, 4, EPS, True)
    with pytest.raises(RuntimeError, match="mask must be uint8"):
        forward(X, *WEIGHTS, torch.ones(2, 4, 4, 4, dtype=torch.uint8), 1.0, 4, EPS, True)
    y, z1, z2, statistics = forward(X, *WEIGHTS, None, 1.0, 4, EPS, True)
    for kept, message in (
        ((z1[:1], z2, statistics), "z1 must have the images"),
        ((z1, z2[:, :2], statistics), "z2 must have the shape of x"),
        ((z1, z2, statistics[:1]), "statistics must be contiguous"),
    ):
        with pytest.raises(RuntimeError, match=message):
            backward(y, X, *WEIGHTS, None, 1.0, *kept, True, True)
    with pytest.raises(RuntimeError, match="grad must have the shape of x"):
        backward(y[:1], X, *WEIGHTS, None, 1.0, z1, z2, statistics, True, True)


def test_a_channel_slice_in_another_layout_is_copied_once():
    last = laid_out(images(2, 5, 16, 16), "channels_last")
    with torch.no_grad():
        made = allocations(lambda: ops.separable_resblock(last, *weights(5, 7), backend="cpu"))
    assert made.count(2 * 5 * 256 * 4) == 2  # the copy and the result
