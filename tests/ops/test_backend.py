"""Which backend runs a call: names, environment, reasons, and a native library that is missing or broken."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from gancomp import _C, BackendError, ConfigError, explain, ops
from gancomp.ops import backend, reference
from gancomp.testing import images

CALLS = {
    "instance_norm_act": (images(1, 2, 4, 4),),
    "reflect_pad_depthwise_conv3x3": (images(1, 2, 4, 4), images(2, 1, 3, 3)),
    "separable_resblock": (
        images(1, 2, 4, 4),
        images(2, 1, 3, 3),
        images(3, 2, 1, 1),
        images(3, 1, 3, 3),
        images(2, 3, 1, 1),
    ),
    "spade_modulate": tuple(images(1, 2, 4, 4, seed=seed) for seed in range(3)),
}
all_ops = pytest.mark.parametrize("op", list(CALLS))


def call(op: str, **kwargs) -> torch.Tensor:
    return getattr(ops, op)(*CALLS[op], **kwargs)


def python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program in a process of its own."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("GANCOMP_")}
    return subprocess.run([sys.executable, "-c", program], env=settings | environment, capture_output=True, text=True)


@pytest.fixture
def not_built(tmp_path, monkeypatch) -> str:
    """gancomp without its native library; gives the reason."""
    library = backend.load_native_library(tmp_path)
    monkeypatch.setattr(backend, "_NATIVE", library)
    return library.reason


@pytest.fixture
def broken(tmp_path, monkeypatch) -> str:
    """gancomp with a native library that does not load; gives the reason."""
    (tmp_path / "_native.so").write_bytes(b"no library")
    library = backend.load_native_library(tmp_path)
    monkeypatch.setattr(backend, "_NATIVE", library)
    return library.reason


@all_ops
def test_the_backends_agree_and_auto_takes_the_native_kernels(op, monkeypatch):
    def forbidden(*_):
        raise AssertionError("the reference runs")

    expected = call(op, backend="reference")
    monkeypatch.setattr(reference, op, forbidden)
    automatic = call(op)
    assert torch.equal(automatic, call(op, backend="cpu"))
    torch.testing.assert_close(automatic, expected)


@all_ops
def test_the_environment_chooses_for_auto_only(op, monkeypatch):
    slow, fast = call(op, backend="reference"), call(op, backend="cpu")
    assert not torch.equal(slow, fast), "the test cannot tell the backends apart"
    monkeypatch.setenv("GANCOMP_BACKEND", "reference")
    assert torch.equal(call(op), slow)
    assert torch.equal(call(op, backend="cpu"), fast)
    monkeypatch.setenv("GANCOMP_BACKEND", "")
    assert torch.equal(call(op), fast)
    monkeypatch.setenv("GANCOMP_BACKEND", "gpu")
    with pytest.raises(ConfigError, match="GANCOMP_BACKEND='gpu': expected auto, cuda, cpu, triton, reference"):
        call(op)


@all_ops
def test_the_environment_does_not_fall_back_either(op, monkeypatch):
    monkeypatch.setenv("GANCOMP_BACKEND", "cpu")
    doubles = [tensor.double() for tensor in CALLS[op]]
    with pytest.raises(BackendError, match=f"{op}: backend 'cpu' cannot run this call: x is float64, the kernels are float32"):
        getattr(ops, op)(*doubles)


@all_ops
def test_a_backend_for_other_devices_says_so(op):
    with pytest.raises(BackendError, match=f"{op}: backend 'cuda' cannot run this call: "):
        call(op, backend="cuda")
    elsewhere = [tensor.to("meta") for tensor in CALLS[op]]
    with pytest.raises(BackendError, match=f"{op}: backend 'cpu' cannot run this call: x is on meta"):
        getattr(ops, op)(*elsewhere, backend="cpu")
    assert getattr(ops, op)(*elsewhere).shape == CALLS[op][0].shape


@all_ops
def test_explain(op):
    header, *lines = explain(op, *CALLS[op]).splitlines()
    assert header == f"{op} (backend 'auto')"
    states = dict(line.strip().split(": ", 1) for line in lines)
    assert list(states) == ["cuda", "cpu", "triton", "reference"]
    assert states["cpu"] == "runs"
    assert states["reference"] == "could run"
    assert states["cuda"].startswith("no, ")

    doubles = explain(op, *(tensor.double() for tensor in CALLS[op]))
    assert "cpu: no, x is float64, the kernels are float32" in doubles
    assert "reference: runs" in doubles

    named = explain(op, *CALLS[op], backend="reference")
    assert named.startswith(f"{op} (backend 'reference')")
    assert "cpu: could run" in named
    assert "reference: runs" in named

    assert "runs" not in explain(op, *CALLS[op], backend="cuda")


def test_explain_of_an_unknown_op():
    with pytest.raises(ConfigError, match="op='conv': expected one of instance_norm_act, reflect_pad_depthwise_conv3x3"):
        explain("conv", images(1, 1, 2, 2))


@all_ops
def test_a_missing_library_leaves_the_reference(op, not_built):
    assert not_built == "the native library is not built (run `pip install .` in the source folder)"
    assert torch.equal(call(op), call(op, backend="reference"))
    with pytest.raises(BackendError, match="backend 'cpu' cannot run this call: the native library is not built"):
        call(op, backend="cpu")
    assert f"cpu: no, {not_built}" in explain(op, *CALLS[op])


@all_ops
def test_a_broken_library_raises_its_reason_on_use(op, broken, monkeypatch):
    assert broken.startswith("the native library _native.so does not load: ")
    assert "_native.so: file too short" in broken, "the loader's own words are lost"
    assert "\n" not in broken
    with pytest.raises(BackendError) as error:
        call(op)
    assert str(error.value) == f"{op}: {broken}; GANCOMP_BACKEND=reference runs without it"
    with pytest.raises(BackendError) as error:
        call(op, backend="cpu")
    assert str(error.value) == f"{op}: backend 'cpu' cannot run this call: {broken}"
    assert f"cpu: no, {broken}" in explain(op, *CALLS[op])
    assert "runs" not in explain(op, *CALLS[op])
    # What the native kernels would not have run anyway is not held up by it.
    assert getattr(ops, op)(*(tensor.double() for tensor in CALLS[op])).dtype == torch.float64
    monkeypatch.setenv("GANCOMP_BACKEND", "reference")
    assert torch.equal(call(op), call(op, backend="reference"))


def test_the_library_is_there():
    assert backend.native_library().reason is None
    assert backend.native_library().path.name.startswith("_native")


def test_the_environment_names_the_instruction_set():
    # Loads the module alone, which takes no time.
    program = (
        f"import importlib.util as u; spec = u.spec_from_file_location('gancomp._C', {_C.__file__!r}); "
        "module = u.module_from_spec(spec); spec.loader.exec_module(module); print(module.isa())"
    )
    best = _C.supported_isas()[0]
    for value, expected in [(isa, isa) for isa in _C.supported_isas()] + [("", best)]:
        assert python(program, GANCOMP_ISA=value).stdout == f"{expected}\n"
    assert python(program).stdout == f"{best}\n"
    unknown = python(program, GANCOMP_ISA="mmx")
    assert unknown.returncode != 0
    assert "ValueError: GANCOMP_ISA='mmx': this build or this processor lacks it; leave it unset" in unknown.stderr


def test_an_instruction_set_that_cannot_be_had_raises_on_use():
    program = (
        "import torch, gancomp\n"
        "from gancomp import ops\n"
        "x = torch.ones(1, 1, 2, 2)\n"
        "for backend in ('auto', 'cpu'):\n"
        "    try: ops.instance_norm_act(x, backend=backend)\n"
        "    except gancomp.BackendError as error: print(error)\n"
        "print(ops.instance_norm_act(x, backend='reference').sum().item())\n"
    )
    reason = "GANCOMP_ISA='mmx': this build or this processor lacks it; leave it unset"
    assert python(program, GANCOMP_ISA="mmx").stdout.splitlines() == [
        f"instance_norm_act: {reason}; GANCOMP_BACKEND=reference runs without it",
        f"instance_norm_act: backend 'cpu' cannot run this call: {reason}",
        "0.0",
    ]


def test_an_instruction_set_is_chosen_by_name(isa):
    assert _C.isa() == isa
    with pytest.raises(ValueError, match="isa='mmx': this build or this processor lacks it"):
        _C.set_isa("mmx")
    assert _C.isa() == isa
    _C.set_isa(None)
    assert _C.isa() == (os.environ.get("GANCOMP_ISA") or _C.supported_isas()[0])
    with pytest.raises(TypeError):
        _C.set_isa(2)
