"""Scores of a generator on a split."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gancomp.data import DataConfig, open_dataset, to_uint8
from gancomp.errors import ConfigError
from gancomp.metrics import (
    HIGHER_IS_BETTER,
    METRICS,
    SEGMENTATION,
    Evaluator,
    StatisticsAccumulator,
    TeacherImages,
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
    assert set(HIGHER_IS_BETTER) < {*METRICS, *SEGMENTATION}


# -- unpaired images -------------------------------------------------------------------------------------------------------

UNPAIRED = DataConfig(load_size=16, crop_size=16, synthetic_train=6, synthetic_test=5, unpaired=True)


def unpaired(teacher=None, references=(), **options) -> Evaluator:
    known = None if teacher is None else TeacherImages(teacher, "d1")
    sets = [open_dataset(UNPAIRED, split) for split in references]
    config = replace(UNPAIRED, **{name: options.pop(name) for name in ("cache_mb",) if name in options})
    return Evaluator(open_dataset(config, "val"), load_extractor(), teacher=known, references=sets, **options)


def test_unpaired_images_are_compared_with_the_teachers() -> None:
    dataset = open_dataset(UNPAIRED, "val")
    inputs = torch.stack([dataset.load(i).input for i in range(5)])
    scores = unpaired(lambda x: -x, batch_size=2).evaluate(dim)
    assert list(scores) == ["l1", "psnr", "ssim", "fd_random"]
    for name, metric in (("l1", l1), ("psnr", psnr), ("ssim", ssim)):
        assert scores[name] == pytest.approx(float(metric(dim(inputs), -inputs).double().mean()), rel=1e-6)
    same = unpaired(dim).evaluate(dim)
    assert (same["l1"], same["psnr"], same["ssim"]) == (0, 100, 1)


def test_without_a_teacher_only_the_frechet_distance_can_be_told() -> None:
    subject = unpaired()
    assert subject.metrics == ("fd",)
    assert list(subject.evaluate(dim)) == ["fd_random"]
    with pytest.raises(ConfigError, match=r"metrics=\['l1'\]: unpaired images have no ground truth, and no teacher"):
        subject.evaluate(dim, ["l1"])


def test_pairs_are_compared_with_the_truth_whatever_teacher_there_is() -> None:
    subject = Evaluator(open_dataset(CONFIG, "val"), load_extractor(), teacher=TeacherImages(dim, "d1"))
    assert subject.evaluate(dim) == evaluator().evaluate(dim)
    assert subject.protocol() == evaluator().protocol()


@pytest.mark.parametrize(("cache_mb", "painted"), [(1, 5), (0, 15)])
def test_the_teachers_images_are_painted_once_while_they_fit(cache_mb: int, painted: int) -> None:
    calls = []
    subject = unpaired(lambda x: (calls.append(len(x)), -x)[1], cache_mb=cache_mb, batch_size=2)
    scores = [subject.evaluate(dim, ["l1"]) for _ in range(3)]
    assert scores[0] == scores[1] == scores[2]
    assert sum(calls) == painted


def test_the_reference_is_that_of_the_splits_asked_for() -> None:
    """The output side of all of them, each image once."""
    subject = unpaired(references=("train", "test"), batch_size=4)
    images = []
    for split in ("train", "test"):
        dataset = open_dataset(UNPAIRED, split)
        images += [dataset.load_target(i) for i in range(dataset.target_count)]
    assert len(images) == subject.reference_images == 11
    statistics = StatisticsAccumulator()
    statistics.add(load_extractor().extract(to_uint8(torch.stack(images))))
    found, expected = subject.reference(), statistics.result()
    assert frechet_distance(found, expected) == pytest.approx(0, abs=1e-5)
    assert subject.evaluate(dim, ["fd"])["fd_random"] != pytest.approx(unpaired().evaluate(dim, ["fd"])["fd_random"], rel=1e-3)


def test_the_protocol_of_unpaired_images() -> None:
    protocol = unpaired(dim, ("train", "val", "test")).protocol()
    assert protocol["reference"] == "train+val+test of the output side"
    assert protocol["reference_images"] == 16
    assert protocol["distances"] == "to the teacher's output"
    assert protocol["teacher_sha256"] == "d1"
    plain = unpaired().protocol()
    assert (plain["reference"], plain["reference_images"]) == ("val of the output side", 5)
    assert "distances" not in plain
    assert protocol["data"] == plain["data"] != evaluator().protocol()["data"]
