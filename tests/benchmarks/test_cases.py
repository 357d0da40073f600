"""The measured networks are the released ones, and their operator calls are counted right."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import NETS, OpCase, build, op_cases
from benchmarks.training_cases import ResblockCase, SpadeCase
from gancomp.testing import assert_accurate, forward_backward, images


@pytest.mark.parametrize(("net", "parameters"), [("C1", 356_867), ("C2", 822_051), ("teacher", 11_378_179)])
def test_networks_are_the_released_ones(net, parameters):
    assert build(NETS[net]).num_parameters() == parameters


def test_weights_depend_on_the_seed_alone():
    config = NETS["C1"]
    before = torch.random.get_rng_state()
    first, second, other = build(config, 3), build(config, 3), build(config, 4)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.model[1].weight, other.model[1].weight)


def test_calls_of_the_compressed_cyclegan_generator():
    cases = op_cases(["C1"])
    calls = {case: count["C1"] for case, count in cases.items()}
    norms = {case: n for case, n in calls.items() if case.op == "instance_norm_act"}
    # 5 norms outside 9 blocks; in each block one inside each of the two separable convolutions and one after it.
    assert sum(norms.values()) == 5 + 9 * 4
    assert sum(n for case, n in norms.items() if case.residual) == 9
    assert sum(n for case, n in norms.items() if case.relu) == 5 + 9
    # Hidden widths 64, 128 and 128 for three blocks each; the stream has 128.
    depthwise = "reflect_pad_depthwise_conv3x3"
    assert {case: n for case, n in calls.items() if case.op == depthwise} == {
        OpCase(depthwise, (1, 64, 64, 64)): 3,
        OpCase(depthwise, (1, 128, 64, 64)): 15,
    }


def test_nets_batch_and_side():
    cases = op_cases(["C1", "teacher"], batch=2, side=64)
    assert {case.shape[0] for case in cases} == {2}
    assert cases[OpCase("instance_norm_act", (2, 256, 16, 16), relu=True)] == {"teacher": 1 + 9}
    assert not any("teacher" in nets for case, nets in cases.items() if case.op == "reflect_pad_depthwise_conv3x3")


@pytest.mark.parametrize(
    "case",
    [
        OpCase("instance_norm_act", (1, 4, 6, 8)),
        OpCase("instance_norm_act", (1, 4, 6, 8), relu=True),
        OpCase("instance_norm_act", (1, 4, 6, 8), residual=True),
        OpCase("reflect_pad_depthwise_conv3x3", (1, 4, 6, 8)),
    ],
    ids=str,
)
def test_every_form_of_a_case_computes_the_same(case):
    tensors = case.inputs()
    exact = case.exact(*[tensor.double() for tensor in tensors])
    assert_accurate(case.gancomp(*tensors, backend="reference"), case.stock(*tensors), exact)


@pytest.mark.parametrize(
    "case",
    [ResblockCase((2, 4, 6, 8), 6), SpadeCase((2, 4, 6, 8), batch=True), SpadeCase((2, 4, 6, 8), batch=False)],
    ids=str,
)
def test_training_cases_compute_the_same_with_the_same_gradients(case):
    tensors, grad = case.inputs(), images(*case.shape, seed=9)
    exact = forward_backward(case.exact, grad.double(), *[tensor.double() for tensor in tensors])
    measure = forward_backward(case.stock, grad, *tensors)
    for backend in ("reference", "cpu"):
        results = forward_backward(lambda *t, backend=backend: case.gancomp(*t, backend=backend), grad, *tensors)
        for ours, stock, truth in zip(results, measure, exact, strict=True):
            assert_accurate(ours, stock, truth, backend)
