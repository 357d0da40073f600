"""What the engine changes in the images of a released generator, on a few photographs."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks import photographs
from gancomp import _C
from gancomp.errors import RunError

pytestmark = pytest.mark.slow


def some(folder: Path, to: Path, count: int = 3) -> Path:
    to.mkdir()
    for path in sorted(folder.iterdir())[:count]:
        (to / path.name).symlink_to(path)
    return to


def test_rows_and_picture(shared: Path, tmp_path: Path) -> None:
    horses = some(shared / photographs.PHOTOGRAPHS, tmp_path / "horses")
    zebras = [some(shared / name, tmp_path / str(number)) for number, name in enumerate(photographs.TARGETS)]
    rows = photographs.measure(shared / photographs.WEIGHTS, horses, zebras, None, tmp_path / "picture.jpg")
    values = {(row.provider, row.metric, row.config): row.p50 for row in rows}
    assert values["engine", "largest step", "worst image"] <= 1
    assert values["engine", "equal bytes", "worst image"] > 99.9
    assert values["engine", "psnr", "worst image"] > 75
    distances = [values[name, "fd_random", "to 6 images of the target domain"] for name in ("PyTorch", "engine")]
    assert distances[0] == pytest.approx(distances[1], rel=1e-3)
    if "avx512vnni" in _C.supported_isas():
        assert 33 < values["engine-int8", "psnr", "worst image"] < 60
        assert values["engine-int8", "ssim", "worst image"] > 0.9
    with Image.open(tmp_path / "picture.jpg") as picture:
        assert picture.format == "JPEG"
        assert picture.height > 5 * 256


def test_absent_files_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GANCOMP_SHARED", str(tmp_path))
    with pytest.raises(RunError, match=r"weights/mobilenet_v2.*GANCOMP_SHARED"):
        photographs.found(photographs.FEATURES)
