"""The Frechet distance against SciPy's matrix root and against closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gancomp.errors import ConfigError, DataError
from gancomp.metrics import Statistics, StatisticsAccumulator, frechet_distance


def features(count: int, dim: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    rng = np.random.default_rng((seed, count, dim))
    return torch.from_numpy(rng.standard_normal((count, dim)) @ rng.standard_normal((dim, dim)) + shift)


def statistics(*chunks: torch.Tensor) -> Statistics:
    accumulator = StatisticsAccumulator()
    for chunk in chunks:
        accumulator.add(chunk)
    return accumulator.result()


def oracle(a: torch.Tensor, b: torch.Tensor) -> float:
    """The formula as it is written, with a general matrix root."""
    linalg = pytest.importorskip("scipy.linalg")
    x, y = a.numpy(), b.numpy()
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(cov_x @ cov_y)
    return float(np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(cov_x + cov_y - 2 * root.real))


def oracle_few(a: torch.Tensor, b: torch.Tensor) -> float:
    """Without any root of a singular matrix: with S = F F^T the trace of (S1 S2)^(1/2) is the nuclear norm of F1^T F2."""
    x, y = a.numpy(), b.numpy()
    factors = [(z - z.mean(0)) / math.sqrt(len(z) - 1) for z in (x, y)]
    traces = sum((factor**2).sum() for factor in factors)
    nuclear = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    return float(np.sum((x.mean(0) - y.mean(0)) ** 2) + traces - 2 * nuclear)


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_against_the_matrix_root(shift: float) -> None:
    a, b = features(200, 12), features(90, 12, seed=1, shift=shift)
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(oracle(a, b), rel=1e-9)
    assert oracle_few(a, b) == pytest.approx(oracle(a, b), rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(5, 7), (2, 2), (2, 50), (30, 31)])
def test_fewer_images_than_features(n: int, m: int) -> None:
    a, b = features(n, 64), features(m, 64, seed=1, shift=0.5)
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(oracle_few(a, b), rel=1e-6)


def test_the_root_of_what_many_are_compared_with_is_taken_once(monkeypatch) -> None:
    a, b, reference = (statistics(features(20, 6, seed=seed)) for seed in range(3))
    calls = []
    original = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (calls.append(matrix), original(matrix))[1])
    first, second = frechet_distance(a, reference), frechet_distance(b, reference)
    assert len(calls) == 1
    assert (first, second) == pytest.approx((frechet_distance(reference, a), frechet_distance(reference, b)), rel=1e-9)


def test_closed_forms() -> None:
    line = [statistics(torch.tensor(values)[:, None].double()) for values in ([0.0, 2.0, 4.0], [7.0, 8.0, 9.0])]
    assert frechet_distance(*line) == pytest.approx(36 + (2 - 1) ** 2)
    scales = torch.tensor([1.0, 2.0, 5.0]).double(), torch.tensor([3.0, 2.0, 0.0]).double()
    zero = torch.zeros(3).double()
    gaussians = [Statistics(zero, torch.diag(s**2), 9) for s in scales]
    assert frechet_distance(*gaussians) == pytest.approx(4 + 0 + 25)


def test_equal_sets_and_order() -> None:
    a, b = statistics(features(40, 100)), statistics(features(40, 100, seed=1))
    assert 0 <= frechet_distance(a, a) < 1e-6 * float(a.covariance.trace())
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)


def test_chunks_do_not_matter_and_nothing_cancels() -> None:
    x = features(50, 6, shift=1e6)
    for sizes in ([50], [1, 49], [7, 1, 20, 22]):
        found = statistics(*x.split(sizes))
        assert found.count == 50
        assert torch.allclose(found.mean, x.mean(0), rtol=1e-12)
        assert torch.allclose(found.covariance, torch.from_numpy(np.cov(x.numpy(), rowvar=False)), rtol=1e-8)
    narrow = statistics(*x.float().split(10))
    assert narrow.covariance.dtype == torch.float64


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 images, got 0"):
        StatisticsAccumulator().result()
    with pytest.raises(ConfigError, match="at least 2 images, got 1"):
        statistics(features(1, 4))
    for bad in (math.nan, math.inf):
        with pytest.raises(ConfigError, match="not finite"):
            StatisticsAccumulator().add(torch.tensor([[1.0, bad]]))
    with pytest.raises(ConfigError, match="4 and 5 features; they must come from one network"):
        frechet_distance(statistics(features(9, 4)), statistics(features(9, 5)))


def test_files(tmp_path: Path) -> None:
    kept = statistics(features(9, 4))
    kept.save(tmp_path / "new" / "s.npz")
    read = Statistics.load(tmp_path / "new" / "s.npz")
    assert torch.equal(read.mean, kept.mean)
    assert torch.equal(read.covariance, kept.covariance)
    assert read.count == 9
    np.savez(tmp_path / "literature.npz", mu=kept.mean.numpy().astype(np.float32), sigma=kept.covariance.numpy())
    foreign = Statistics.load(tmp_path / "literature.npz")
    assert foreign.mean.dtype == torch.float64
    assert frechet_distance(foreign, kept) == pytest.approx(0, abs=1e-9)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.npz: no such file"):
        Statistics.load(tmp_path / "gone.npz")
    file = tmp_path / "s.npz"
    statistics(features(9, 4)).save(file)
    whole = file.read_bytes()
    mean, covariance = np.zeros(3), np.zeros((3, 3))
    for write in (
        lambda: file.write_bytes(whole[:200]),
        lambda: file.write_bytes(b""),
        lambda: np.savez(file, mu=mean),
        lambda: np.savez(file, mu=np.array([{}], dtype=object), sigma=covariance),
        lambda: np.savez(file, mu=mean, sigma=np.zeros((2, 2))),
        lambda: np.savez(file, mu=covariance, sigma=covariance),
        lambda: np.savez(file, mu=mean * math.nan, sigma=covariance),
    ):
        write()
        with pytest.raises(DataError, match=r"s\.npz: ") as caught:
            Statistics.load(file)
        assert "\n" not in str(caught.value)
