"""The rules of the tree: dependencies point inward, kernels neither allocate nor keep state, builds run on any processor."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import gancomp

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ("csrc/cpu", "csrc/cuda")  # ring 0 without its dispatch
RING_0 = (*KERNELS, "csrc/core")
RINGS_0_AND_1 = (*RING_0, "csrc/engine", "csrc/include")
CODE = (".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp")


def _committed() -> list[Path]:
    """The files of the repository; where git cannot tell, those of its source folders."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        paths = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [path for folder in ("csrc", "gancomp", "kernels", "tests") for path in (ROOT / folder).rglob("*")]
        paths += [path for path in ROOT.iterdir() if not path.name.startswith(".")]
    return sorted(path for path in paths if path.is_file())


COMMITTED = _committed()


def code(*folders: str) -> list[Path]:
    return [path for path in COMMITTED if path.suffix in CODE and path.relative_to(ROOT).as_posix().startswith(folders)]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def without_comments(path: Path) -> str:
    """The text of a C++ file with comments and string literals blanked."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"'
    return re.sub(pattern, lambda match: re.sub(r"[^\n]", " ", match[0]), path.read_text(), flags=re.DOTALL)


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), flags=re.MULTILINE)


def each(*folders: str):
    return pytest.mark.parametrize("path", code(*folders), ids=name)


def test_there_is_something_to_look_at():
    found = {name(path) for path in code(*RINGS_0_AND_1)}
    assert {"csrc/include/gancomp/ops.h", "csrc/core/dispatch.cpp", "csrc/cpu/instance_norm_act.cpp"} <= found


@each(*RINGS_0_AND_1)
def test_rings_0_and_1_know_neither_torch_nor_python(path):
    outer = ("torch/", "ATen/", "c10/", "caffe2/", "pybind11/", "Python.h", "numpy/")
    assert [header for header in includes(path) if header.startswith(outer)] == []
    assert not re.search(r"\b(at|torch|c10|pybind11|py)::", without_comments(path))


@each(*RING_0)
def test_ring_0_does_not_know_ring_1(path):
    engine = {header.name for header in code("csrc/engine") if header.suffix == ".h"} | {"engine.h", "c_api.h"}
    assert [header for header in includes(path) if Path(header).name in engine] == []


@each("csrc/bindings")
def test_bindings_use_the_stable_abi_alone(path):
    headers = [header for header in includes(path) if header.startswith(("torch/", "ATen/", "c10/"))]
    assert all(header.startswith(("torch/csrc/stable/", "torch/headeronly/")) for header in headers), headers


@each(*KERNELS)
def test_kernels_never_allocate(path):
    allocating = (
        r"\bnew\b|\bdelete\b(?!\s*;)|\b(malloc|calloc|realloc|free|aligned_alloc|posix_memalign|alloca)\s*\("
        r"|\bstd::(vector|string|deque|list|map|set|unordered_\w+|function|any|make_unique|make_shared|unique_ptr|shared_ptr)\b"
    )
    assert re.findall(allocating, without_comments(path)) == []


@each(*KERNELS)
def test_kernels_keep_no_state(path):
    # A static or thread_local variable that is neither const nor constexpr; static functions are none.
    assert re.findall(r"\b(?:static|thread_local)\b(?!\s+(?:inline\s+)?const)[^(;{]*[;={]", without_comments(path)) == []


@each("csrc")
def test_every_source_is_built(path):
    if path.suffix in (".cpp", ".cc", ".c", ".cu"):
        assert re.search(rf"\b{re.escape(path.stem)}\b", (ROOT / "CMakeLists.txt").read_text()), "not in CMakeLists.txt"


def test_no_build_is_for_this_machine_alone():
    native = re.compile(r"-m(arch|tune|cpu)=native|-xHost")
    builds = [path for path in COMMITTED if path.name in ("CMakeLists.txt", "Makefile", "setup.py", "pyproject.toml")]
    builds += [path for path in COMMITTED if path.suffix in (".cmake", ".yml", ".yaml", ".sh")] + code("csrc")
    assert len(builds) > 10
    assert [name(path) for path in builds if native.search(path.read_text())] == []


def test_code_of_an_instruction_set_stays_with_it():
    """Only the kernels compiled for AVX use it: what starts the library must run on any x86-64 processor."""
    library = Path(gancomp.__file__).parent / "lib" / "libgancomp.so"
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed")
    text = subprocess.run(["objdump", "-d", "-C", "--no-show-raw-insn", library], capture_output=True, text=True).stdout
    if "file format elf64-x86-64" not in text:
        pytest.skip("the library is not for x86-64")
    vector, wide = {}, {}
    for block in text.split("\n\n"):
        header = re.match(r"[0-9a-f]+ <(.*)>:\n", block)
        if header is None:
            continue
        vector[header[1]] = re.findall(r"^\s+[0-9a-f]+:\s+(v[a-z]\w*)", block, flags=re.MULTILINE)
        wide[header[1]] = "%zmm" in block
    assert any("gancomp::avx2::" in function and found for function, found in vector.items()), "the symbols are stripped"
    assert any("gancomp::avx512::" in function and found for function, found in wide.items())
    strays = {f: found for f, found in vector.items() if found and not re.search(r"gancomp::avx(2|512\w*)::", f)}
    assert strays == {}
    assert [f for f, found in wide.items() if found and "gancomp::avx512" not in f] == []


def test_no_file_is_long():
    text = (*CODE, ".py", ".pyi", ".txt", ".toml", ".md", ".js", ".css", ".html", ".yml", ".yaml", ".sh")
    lengths = {name(path): len(path.read_text().splitlines()) for path in COMMITTED if path.suffix in text}
    assert len(lengths) > 50
    assert {path: lines for path, lines in lengths.items() if lines > 600} == {}


def test_the_kernels_package_has_one_name():
    # `kernels` is also a package of the registry: ours is gancomp.kernels.
    python = [path for path in COMMITTED if path.suffix == ".py"]
    wrong = re.compile(r"^\s*(from kernels\b|import kernels\b)", flags=re.MULTILINE)
    assert [name(path) for path in python if wrong.search(path.read_text())] == []
