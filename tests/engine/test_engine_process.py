"""The engine as part of a process: how fast it starts, how much memory it takes, forks, and no torch anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gancomp.models import ResnetConfig

from .networks import build


@pytest.fixture(scope="module")
def compressed(tmp_path_factory) -> Path:
    """The compressed CycleGAN generator of GAN Compression."""
    path = tmp_path_factory.mktemp("process") / "g.safetensors"
    build(ResnetConfig.parse("16_16_32_16_32_32_16_16")).save(path)
    return path


def run(program: str, *arguments: object) -> str:
    """Run a program in a new process; returns what it prints, fails with what it complains of."""
    command = [sys.executable, "-W", "error", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


START = """
import json, re, sys, time
import numpy as np
from gancomp import Engine
engine = Engine(sys.argv[1], threads=1)
image = engine(np.zeros((256, 256, 3), np.uint8))
now = time.monotonic()
cpu = time.process_time()
for _ in range(3):
    engine(image)
print(json.dumps({
    "seconds": now - float(sys.argv[2]),
    "cpu": cpu,
    "mb": int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024,
    "torch": "torch" in sys.modules,
}))
"""


def test_start_to_first_image_and_memory(compressed: Path, capsys) -> None:
    """Aims: 0.3 s and 120 MB. A busy machine may take twice the time; the processor's time says what is ours."""
    starts = [json.loads(run(START, compressed, time.monotonic())) for _ in range(4)]
    best = min(starts, key=lambda start: start["seconds"])
    with capsys.disabled():
        print(" [first image after {seconds:.2f} s, {cpu:.2f} s of processor time; {mb:.0f} MB]".format(**best), end="")
    assert not best["torch"]
    assert min(start["cpu"] for start in starts) < 0.6
    assert best["seconds"] < 0.6
    assert best["mb"] < 120


def test_only_the_kind_of_image_that_comes_is_imported(compressed: Path) -> None:
    program = """
import sys
import numpy as np
from gancomp import Engine
engine = Engine(sys.argv[1])
engine(np.zeros((16, 16, 3), np.uint8))
engine(np.zeros((3, 16, 16), np.float32))
try:
    engine("a picture")
except ValueError:
    pass
assert not {"torch", "PIL"} & {name.partition(".")[0] for name in sys.modules}
from PIL import Image
assert engine(Image.new("L", (20, 16))).size == (20, 16)
print("torch" in sys.modules)
"""
    assert run(program, compressed) == "False"


@pytest.mark.parametrize("threads", [1, 2])
def test_forked_processes_may_use_their_parents_engine(compressed: Path, threads: int) -> None:
    program = """
import os, sys
import numpy as np
from gancomp import Engine
engine = Engine(sys.argv[1], threads=int(sys.argv[2]))
x = np.random.default_rng(0).random((3, 40, 40), np.float32)
expected = engine(x)
unused = engine.another(threads=2)

def child(work):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if work() else 1)
    return os.waitpid(pid, 0)[1]

def runs():
    return all(np.array_equal(engine(x), expected) for _ in range(3))

def runs_and_ends():
    global engine, unused
    fine = runs() and child(runs) == 0
    del engine, unused
    return fine

print(child(runs), child(runs_and_ends), runs())
"""
    assert run(program, compressed, threads) == "0 0 True"


def test_processes_of_a_pool(compressed: Path) -> None:
    """As a server or a data loader would: workers forked with an engine in them, many images each."""
    program = """
import multiprocessing, sys
import numpy as np
from gancomp import Engine
engine = Engine(sys.argv[1], threads=2)
rng = np.random.default_rng(0)
images = [rng.integers(0, 256, (32, 32 + i, 3), np.uint8) for i in range(8)]
expected = [engine(image) for image in images]
def work(i):
    return np.array_equal(engine(images[i]), expected[i])
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(all(pool.map(work, list(range(8)) * 3)))
"""
    assert run(program, compressed) == "True"


def test_threads_end_with_the_engine(compressed: Path) -> None:
    program = """
import os, sys
import numpy as np
from gancomp import Engine
def threads():
    return len(os.listdir("/proc/self/task"))
before = threads()
engines = [Engine(sys.argv[1], threads=4) for _ in range(3)]
during = threads() - before
for engine in engines:
    engine(np.zeros((16, 16, 3), np.uint8))
same = threads() - before == during
del engine, engines
print(during, same, threads() - before)
"""
    assert os.path.isdir("/proc/self/task")
    assert run(program, compressed) == "9 True 0"
