"""The reader of model files, under AddressSanitizer and UndefinedBehaviorSanitizer, against files damaged on purpose."""

from __future__ import annotations

import base64
import random
import re
from pathlib import Path

import pytest

from gancomp import Engine
from gancomp.errors import CheckpointError

from .native import ROOT, build, run

CORPUS, REGRESSIONS = ROOT / "tests" / "fuzz" / "corpus", ROOT / "tests" / "fuzz" / "regressions"
SECONDS = 60


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_every_seed_is_a_good_file(path: Path) -> None:
    """A fuzzer that begins with what the reader refuses would not get far."""
    assert Engine(path).parameters > 0


@pytest.mark.parametrize("path", sorted(REGRESSIONS.iterdir()), ids=lambda path: path.name)
def test_what_a_fuzzer_once_found_is_refused_in_few_words(path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        Engine(path)
    assert len(str(caught.value)) - len(str(path)) < 512


@pytest.mark.slow
def test_no_file_harms_the_reader(tmp_path: Path) -> None:
    """Another minute of random damage in every run; libFuzzer, which sees what is covered, is for longer ones."""
    fuzzer = build("sanitize-address", "fuzz_model_file", "-DGANCOMP_FUZZ=ON", "-DGANCOMP_SANITIZE=address;undefined").joinpath(
        "fuzz_model_file"
    )
    seed = random.SystemRandom().randrange(2**31)
    done = run(fuzzer, CORPUS, REGRESSIONS, f"-max_total_time={SECONDS}", f"-seed={seed}", cwd=tmp_path)
    culprit = tmp_path / "crash-input"
    content = base64.b64encode(culprit.read_bytes()).decode() if culprit.exists() else "none"
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-4000:]}\nthe input in base64: {content}"
    found = re.fullmatch(r"(\d+) inputs, no failure\n", done.stdout)
    # Some hundred a second on the slowest machine.
    assert found is not None
    assert int(found[1]) > 100 * SECONDS
