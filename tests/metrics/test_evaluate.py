"""Scores of a generator on a split."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gancomp.data import DataConfig, open_dataset, to_uint8
from gancomp.errors import ConfigError
from gancomp.metrics import (
    HIGHER_IS_BETTER,
    METRICS,
    Evaluator,
    StatisticsAccumulator,
    frechet_distance,
    l1,
    load_extractor,
    psnr,
    ssim,
)

CONFIG = DataConfig(load_size=16, crop_size=16, synthetic_test=5)


def evaluator(config: DataConfig = CONFIG, **options) -> Evaluator:
    return Evaluator(open_dataset(config, "val"), load_extractor(), **options)


def dim(x: Tensor) -> Tensor:
    return x * 0.5


def test_scores_are_means_over_the_images() -> None:
    pairs = [open_dataset(CONFIG, "val").load(i) for i in range(5)]
    inputs, targets = torch.stack([p.input for p in pairs]), torch.stack([p.target for p in pairs])
    scores = evaluator(batch_size=2).evaluate(dim)
    assert list(scores) == ["l1", "psnr", "ssim", "fd_random"]
    for name, metric in (("l1", l1), ("psnr", psnr), ("ssim", ssim)):
        assert scores[name] == pytest.approx(float(metric(dim(inputs), targets).double().mean()), rel=1e-6)
    statistics = []
    for images in (dim(inputs), targets):
        accumulator = StatisticsAccumulator()
        accumulator.add(load_extractor().extract(to_uint8(images)))
        statistics.append(accumulator.result())
    assert scores["fd_random"] == pytest.approx(frechet_distance(*statistics), rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 99])
def test_the_batch_size_does_not_matter(batch_size: int) -> None:
    assert evaluator(batch_size=batch_size).evaluate(dim) == pytest.approx(evaluator(batch_size=5).evaluate(dim), rel=1e-4)


def test_a_perfect_generator() -> None:
    dataset = open_dataset(CONFIG, "val")
    targets = iter([dataset.load(i).target[None] for i in range(5)])
    scores = evaluator(batch_size=1).evaluate(lambda x: next(targets))
    assert (scores["l1"], scores["psnr"], scores["ssim"]) == (0, 100, 1)
    assert scores["fd_random"] < 1e-6


def test_only_what_was_asked_for_is_computed(monkeypatch) -> None:
    subject = evaluator()
    monkeypatch.setattr(subject.extractor, "extract", lambda images: pytest.fail("no features are needed"))
    assert list(subject.evaluate(dim, ["ssim", "l1"])) == ["ssim", "l1"]


def test_the_targets_features_are_computed_once(monkeypatch) -> None:
    subject = evaluator()
    calls = []
    original = subject.extractor.extract
    monkeypatch.setattr(subject.extractor, "extract", lambda images: (calls.append(len(images)), original(images))[1])
    first = subject.evaluate(dim, ["fd"])
    again = subject.evaluate(dim, ["fd"])
    assert first == again
    assert sum(calls) == 3 * 5


def test_the_distance_is_named_after_its_network() -> None:
    subject = evaluator()
    assert subject.fd_name == "fd_random"
    subject.extractor.name = "mobilenet_v2"
    assert "fd_mobilenet_v2" in subject.evaluate(dim, ["fd"])
    assert not any("fid" in name.lower() for name in subject.evaluate(dim))


def test_the_protocol_tells_what_the_numbers_depend_on() -> None:
    protocol = evaluator().protocol()
    assert (protocol["split"], protocol["images"], protocol["size"]) == ("val", 5, 16)
    assert protocol["data"] == open_dataset(CONFIG, "val").fingerprint
    assert protocol["extractor"] == "random"
    assert protocol["extractor_sha256"] == load_extractor().digest
    assert protocol == evaluator(batch_size=2).protocol()


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"metrics=\['fid'\]: expected some of l1, psnr, ssim, fd"):
        evaluator().evaluate(dim, ["l1", "fid"])
    for metrics in (["l1"], ["fd"], []):
        with pytest.raises(ConfigError, match="not finite"):
            evaluator().evaluate(lambda x: x * math.nan, metrics)
    with pytest.raises(ConfigError, match="expected two equal"):
        evaluator().evaluate(lambda x: x[..., 1:], ["l1"])
    with pytest.raises(ConfigError, match="at least 2 images, got 1"):
        evaluator(DataConfig(load_size=16, crop_size=16, synthetic_test=1)).evaluate(dim)


def test_which_way_is_better() -> None:
    good, bad = evaluator().evaluate(lambda x: x), evaluator().evaluate(lambda x: -x)
    for name, score in good.items():
        assert (score > bad[name]) == (name in HIGHER_IS_BETTER), name
    assert set(HIGHER_IS_BETTER) < set(METRICS)
