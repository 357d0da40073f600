"""Settings from a YAML run file, overridden by flags."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import io
import itertools
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gancomp.errors import ConfigError, first_line

T = TypeVar("T")

# The field's customary names, kept where they say the same thing.
ALIASES = {
    "--dataroot": "--data.root",
    "--direction": "--data.direction",
    "--load-size": "--data.load-size",
    "--crop-size": "--data.crop-size",
    "--ngf": "--model.ngf",
    "--netG": "--model.arch",
    "--model": "--method",
}


def parse(settings: type[T], verb: str, arguments: Sequence[str]) -> tuple[T, bool]:
    """Read the settings of a verb: a method's defaults, over them the file of ``--config``, over that flags.

    Returns:
        The settings, and whether ``--print-config`` asked to print instead of run them.

    Raises:
        ConfigError: the file is missing, no YAML, or has unknown or wrong values; or a flag's value is out of range.
        SystemExit: a flag is unknown or wrong (status 2), or help was asked for (status 0).
    """
    import tyro

    rest, file, show = _take_config(arguments)
    flags = _flags(settings)
    rest = [_rename(argument, flags) for argument in rest]
    values = _read_yaml(file, verb) if file else {}
    if "--method" in flags:
        from gancomp.pipeline.methods import method_defaults

        values = _merged(method_defaults(settings, _method(rest, values)), values)
    default = _build(settings, values, "", missing=tyro.MISSING)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(
                settings, prog=f"gancomp {verb}", args=rest, default=default, description=_describe(settings, flags)
            )
            return parsed, show
    except SystemExit as stop:
        # tyro draws a box round the errors of our own checks and leaves: they are one line like all others.
        cause: BaseException | None = stop
        while cause is not None and not isinstance(cause, ConfigError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        print(complaint.getvalue(), end="", file=sys.stderr)
        raise


def _method(arguments: Sequence[str], values: Mapping[str, Any]) -> str:
    """The method that flags or, without them, the run file name; the last flag counts."""
    method = values.get("method", "")
    for argument, following in itertools.pairwise([*arguments, ""]):
        if argument == "--method":
            method = following
        elif argument.startswith("--method="):
            method = argument.partition("=")[2]
    return str(method)


def _merged(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` over ``defaults``, groups setting by setting; what is no group where one belongs is left for its error."""
    both = {
        name: {**default, **values[name]}
        for name, default in defaults.items()
        if isinstance(default, Mapping) and isinstance(values.get(name), Mapping)
    }
    return {**defaults, **values, **both}


def _take_config(arguments: Sequence[str]) -> tuple[list[str], str, bool]:
    rest: list[str] = []
    file, show = "", False
    iterator = iter(arguments)
    for argument in iterator:
        if argument == "--config":
            file = next(iterator, "")
            if not file:
                raise ConfigError("--config: expected the path of a YAML file")
        elif argument.startswith("--config="):
            file = argument.partition("=")[2]
        elif argument == "--print-config":
            show = True
        else:
            rest.append(argument)
    return rest, file, show


def _flags(settings: Any, prefix: str = "--") -> set[str]:
    """The flags of a verb, those of its groups with their dots."""
    found = set()
    for name, hint in typing.get_type_hints(settings).items():
        flag = prefix + name.replace("_", "-")
        found |= _flags(hint, f"{flag}.") if dataclasses.is_dataclass(hint) else {flag}
    return found


def _rename(argument: str, flags: set[str]) -> str:
    flag, equals, value = argument.partition("=")
    target = ALIASES.get(flag)
    return argument if target not in flags or flag in flags else target + equals + value


def _describe(settings: type, flags: set[str]) -> str:
    """What the help says above the flags; tyro does not know those that are taken before it."""
    short = [f"{alias} for {target}" for alias, target in ALIASES.items() if _rename(alias, flags) == target]
    notes = [
        "Settings can come from a YAML file (--config FILE); flags override them. To see them and run nothing: --print-config.",
        f"Short names: {', '.join(short)}." if short else "",
    ]
    return "\n\n".join([inspect.cleandoc(settings.__doc__ or ""), *filter(None, notes)])


def _read_yaml(file: str, verb: str) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config={file!r}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"config={file!r}: is a folder, expected a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config={file!r}: not YAML ({first_line(error)})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"config={file!r}: expected settings as `name: value` lines")
    # The file written beside a run names its verb.
    written_by = values.pop("verb", verb)
    if written_by != verb:
        raise ConfigError(f"config={file!r}: is a run file of `gancomp {written_by}`")
    return values


def _build(settings: Any, values: Mapping[str, Any], prefix: str, missing: Any) -> Any:
    fields = {field.name: field for field in dataclasses.fields(settings)}
    hints = typing.get_type_hints(settings)
    for name in values:
        if name not in fields:
            close = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else ""
            raise ConfigError(f"run file: unknown setting {prefix}{name}{hint}")
    built = {}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if dataclasses.is_dataclass(hints[name]):
            inner = values.get(name, {})
            if not isinstance(inner, Mapping):
                raise ConfigError(f"run file: {prefix}{name}={inner!r}: expected settings of its own")
            start = {} if field.default_factory is dataclasses.MISSING else _changed(hints[name], field.default_factory())
            built[name] = _build(hints[name], {**start, **inner}, f"{prefix}{name}.", missing)
        elif name in values:
            built[name] = _convert(values[name], hints[name], prefix + name)
        elif required:
            built[name] = missing
    return settings(**built)


def _changed(settings: Any, value: Any) -> dict[str, Any]:
    """What an owner's default sets differently from the group's own defaults."""
    plain = settings()
    return {
        field.name: getattr(value, field.name)
        for field in dataclasses.fields(settings)
        if getattr(value, field.name) != getattr(plain, field.name)
    }


def _convert(value: Any, hint: Any, name: str) -> Any:
    """Check a YAML value against the field's type; YAML reads 1e-3 as text, so numbers in text are taken as numbers."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        if value is False and "off" in choices:
            # YAML takes a bare off for false.
            return "off"
        if value not in choices:
            raise ConfigError(f"run file: {name}={value!r}: expected one of {', '.join(map(str, choices))}")
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(value, next(c for c in choices if c is not type(None)), name)
    try:
        if hint is bool and isinstance(value, bool):
            return value
        if hint is int and not isinstance(value, bool) and float(value) == int(float(value)):
            return int(float(value))
        if hint is float and not isinstance(value, bool):
            return float(value)
        if hint is str and isinstance(value, str | int | float) and not isinstance(value, bool):
            return str(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ConfigError(f"run file: {name}={value!r}: expected {getattr(hint, '__name__', hint)}")
