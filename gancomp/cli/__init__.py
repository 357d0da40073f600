"""The command line: ``gancomp VERB [--config run.yaml] [flags]``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from gancomp.errors import ConfigError, GancompError
from gancomp.version import __version__

# verb: module, settings, function, one line of help
VERBS = {
    "compress": (
        "compress",
        "CompressRun",
        "run_compress",
        "all stages: from images or a teacher to a compressed generator and a report",
    ),
    "train": ("train", "TrainRun", "run_train", "train a teacher generator on pairs of images"),
    "supernet": ("supernet", "SupernetRun", "run_supernet", "distil a teacher into a once-for-all supernet"),
    "search": ("search", "SearchRun", "run_search", "find the best configuration of a supernet under a budget"),
    "finetune": ("finetune", "FinetuneRun", "run_finetune", "fine-tune one configuration"),
    "convert": ("convert", "ConvertRun", "run_convert", "read a network of another project, and write it as one of this"),
    "export": ("finetune", "ExportRun", "run_export", "write a generator to one self-describing file"),
    "evaluate": ("evaluate", "EvaluateRun", "run_evaluate", "score a generator on a split"),
    "profile": ("profile", "ProfileRun", "run_profile", "count parameters and multiply-accumulates"),
    "bench": ("bench", "BenchRun", "run_bench", "time a generator on this machine, and where the engine's time goes"),
    "data": ("data", "DataRun", "run_data", "fetch public data sets and lay them out"),
    "sensitivity": (
        "sensitivity",
        "SensitivityRun",
        "run_sensitivity",
        "decompose each group of a generator's layers in turn, and compare quality and cost",
    ),
    "demo": ("demo", "DemoRun", "run_demo", "compress a small generator on embedded data, in minutes"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit status: 0 done, 1 trouble of the machine, 2 wrong input, 130 interrupted."""
    try:
        status = _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        # What a pipe cannot take must show here, not when Python ends.
        sys.stdout.flush()
        return status
    except GancompError as error:
        print(f"gancomp: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("gancomp: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) is gone; Python must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"gancomp: error: {error.strerror or error}{where}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        # torch says so in words only.
        if not isinstance(error, MemoryError) and not any(word in str(error) for word in ("out of memory", "allocate memory")):
            raise
        print("gancomp: error: out of memory; use a smaller batch_size, crop_size or ngf", file=sys.stderr)
        return 1


def _dispatch(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb in ("--version", "version"):
        print(f"gancomp {__version__}")
        return 0
    if verb == "info":
        return _info()
    if verb not in VERBS:
        raise ConfigError(f"unknown verb {verb!r}: expected one of {', '.join([*VERBS, 'info'])}")
    return _run(verb, rest)


def _run(verb: str, arguments: Sequence[str]) -> int:
    module_name, settings_name, function_name, _ = VERBS[verb]
    module = importlib.import_module(f"gancomp.pipeline.{module_name}")
    from gancomp.cli.parse import parse
    from gancomp.cli.show import show

    settings, print_config = parse(getattr(module, settings_name), verb, arguments)
    if print_config:
        import yaml

        from gancomp.pipeline.settings import plain

        print(yaml.safe_dump({"verb": verb, **plain(settings)}, sort_keys=False), end="")
        return 0
    function: Callable[..., Any] = getattr(module, function_name)
    show(verb, settings, function(settings))
    return 0


def _usage() -> str:
    width = max(map(len, VERBS)) + 2
    lines = [f"gancomp {__version__}: compress image-to-image GANs", "", "usage: gancomp VERB [--config run.yaml] [flags]", ""]
    lines += [f"  {verb:{width}}{line}" for verb, (*_, line) in VERBS.items()]
    lines += [f"  {'info':{width}}what this installation can do", "", "`gancomp VERB --help` lists the flags of a verb."]
    return "\n".join(lines)


def _info() -> int:
    import torch

    from gancomp.ops.backend import native_library

    print(f"gancomp {__version__}, torch {torch.__version__}")
    library = native_library()
    if library.reason is not None:
        print(f"native library: no, {library.reason}")
        return 1
    from gancomp import _C

    print(f"native library: {_C.compiler}, {_C.build_type}; kernels: {_C.isa()} (built: {', '.join(_C.built_isas())})")
    print(f"CUDA: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'no'}")
    return 0
