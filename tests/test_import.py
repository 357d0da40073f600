"""Importing gancomp is cheap: no CUDA, no Triton, nothing that only one verb needs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import gancomp

# What only plots, the command line, logs, kernels or data need.
HEAVY = ("triton", "matplotlib", "tyro", "tensorboard", "scipy", "yaml", "tqdm")

PROGRAM = """
import json, sys, time
import torch
before, start = set(sys.modules), time.process_time()
import gancomp
for name in gancomp.__all__:
    getattr(gancomp, name)
seconds = time.process_time() - start
print(json.dumps({
    "seconds": seconds,
    "new": sorted(set(sys.modules) - before),
    "cuda": torch.cuda.is_initialized(),
}))
"""


@pytest.fixture(scope="module")
def imported() -> dict:
    """What a fresh process that imports torch, then every public name, says of itself."""
    result = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


@pytest.mark.parametrize("package", HEAVY)
def test_heavy_packages_are_left_alone(imported, package):
    assert package not in {name.partition(".")[0] for name in imported["new"]}


def test_cuda_is_not_touched(imported):
    assert not imported["cuda"]


def test_kernels_and_tests_are_left_alone(imported):
    assert not [name for name in imported["new"] if name.startswith(("gancomp.kernels", "gancomp.testing", "gancomp.cli"))]


def test_the_import_is_fast(imported):
    assert imported["seconds"] < 1.0, "seconds of processor time beyond those of torch"


def test_the_public_names_exist():
    assert len(gancomp.__all__) == len(set(gancomp.__all__))
    for name in gancomp.__all__:
        assert getattr(gancomp, name) is not None
    assert Path(gancomp.__file__).with_name("py.typed").exists()


def test_type_checkers_see_the_names_that_are_loaded_when_used():
    """The imports under TYPE_CHECKING, the table of modules and ``__all__`` say the same."""
    tree = ast.parse(Path(gancomp.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: statement.module.removeprefix("gancomp.")
        for statement in block.body
        if isinstance(statement, ast.ImportFrom) and statement.module
        for alias in statement.names
    }
    assert seen == gancomp._MODULE_OF
    assert seen.keys() < set(gancomp.__all__) <= set(dir(gancomp))


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'gancomp' has no attribute 'Motor'"):
        gancomp.Motor  # noqa: B018
    assert not hasattr(gancomp, "__wrapped__")


ALONE = """
import sys
import gancomp
assert "numpy" not in sys.modules, "the package itself loads nothing"
import gancomp.engine
from gancomp import Engine
assert Engine is gancomp.Engine is gancomp.engine.Engine
print(*sorted(sys.modules))
"""


def test_the_engine_needs_no_torch():
    """``import gancomp.engine`` loads numpy; PIL and torch stay where they are until somebody uses them."""
    result = subprocess.run([sys.executable, "-W", "error", "-c", ALONE], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    packages = {name.partition(".")[0] for name in loaded}
    assert not packages & {"torch", "PIL", "safetensors", *HEAVY}
    ours = {"gancomp", "gancomp.engine", "gancomp.errors", "gancomp.version"}
    assert {name for name in loaded if name.startswith("gancomp")} - {"gancomp._C"} == ours


@pytest.mark.parametrize("module", ["checkpoints", "engine", "models", "nn", "ops", "supernet"])
def test_modules_are_found_without_an_import_of_their_own(module):
    program = f"import gancomp; print(gancomp.{module}.__name__)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == f"gancomp.{module}", result.stderr
