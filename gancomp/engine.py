"""The inference engine: a generator's file, run on the CPU. Needs no PyTorch."""

from __future__ import annotations

import operator
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from gancomp.errors import BackendError, ConfigError, first_line

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from PIL import Image

    from gancomp import _C

    ImageT = TypeVar("ImageT", NDArray[Any], Image.Image, torch.Tensor)

PRECISIONS = ("f32", "int8")
MAX_THREADS = 256
_MIN_SIDE, _MAX_SIDE = 16, 16384


@dataclass(frozen=True)
class Step:
    """One step of the network, and what it takes."""

    name: str
    """What is computed, e.g. ``pointwise 128->64``."""
    ms: float
    """Milliseconds, the median over the runs of a profile."""
    macs: int
    """Multiply-accumulates really done."""
    bytes: int
    """Activations and weights, read and written once each."""


class Engine:
    """A generator, ready to run on the CPU with threads and memory of its own.

    >>> engine = Engine("student.safetensors", threads=2)
    >>> photo = engine(image)

    Calls from several threads wait for each other, with Python free to do other things; for calls at once give every caller
    ``engine.another()``, which shares the weights. The first call of an image size plans and allocates memory, later ones
    of that size allocate nothing but their result.

    Args:
        model: path of a ``.safetensors`` file that gancomp wrote (``gancomp export`` makes one of other files), or its bytes.
        threads: that run an image, the caller's included; 0 takes ``GANCOMP_NUM_THREADS``, or else one per processor.
        precision: ``f32``, or ``int8``: 8-bit weights and activations in the convolutions where that is faster and harmless. It
            changes the images a little (docs/engine.md), and needs a processor with AVX-512 VNNI. There is no ``f16``.
        isa: instruction set of the kernels: ``portable``, ``avx2``, ``avx512``, ``avx512vnni``, ``neon``; None takes
            ``GANCOMP_ISA``, or else the best of this processor.

    Raises:
        ConfigError: an argument is wrong.
        CheckpointError: the file is missing, damaged, or of a network that the engine does not run.
        BackendError: the native library is not there.
    """

    _native: _C.Engine

    def __init__(
        self, model: str | os.PathLike[str] | bytes, *, threads: int = 0, precision: str = "f32", isa: str | None = None
    ) -> None:
        native, threads = _library().Engine, _threads(threads)
        if precision == "f16":
            raise ConfigError(
                "precision='f16': not built, for want of a processor with 16-bit arithmetic to try it on; expected f32 or int8"
            )
        if precision not in PRECISIONS:
            raise ConfigError(f"precision={precision!r}: expected {' or '.join(PRECISIONS)}")
        if isa is not None and not isinstance(isa, str):
            raise ConfigError(f"isa={isa!r}: expected a name or None")
        if isinstance(model, bytes):
            self._native = native.parse(model, threads, precision, isa)
        elif isinstance(model, str | os.PathLike):
            self._native = native.load(os.fsencode(model), threads, precision, isa)
        else:
            raise ConfigError(f"model: is of type {type(model).__name__}, expected the path or the bytes of a file")

    def another(self, *, threads: int = 0) -> Engine:
        """An engine of the same weights, which are not copied, with threads and memory of its own.

        Raises:
            ConfigError: wrong number of threads.
        """
        engine = object.__new__(Engine)
        engine._native = self._native.another(_threads(threads))
        return engine

    def __call__(self, image: ImageT, *, out: NDArray[Any] | None = None) -> ImageT:
        """Translate an image, or several of one size.

        Images may be of any size from 16 to 16384: where the network needs multiples of some number, they are padded by
        reflection below and on the right and the result is cut back, as :meth:`gancomp.models.Generator.translate` does.

        Args:
            image: a PIL image; or a numpy array or CPU tensor, uint8 [H, W, C] or [N, H, W, C], or float32 [C, H, W] or
                [N, C, H, W] in [-1, 1]; [H, W] too for one channel. Contiguous memory is read where it lies.
                For a network of label maps, such a map: its one-hot image, float32 [C, H, W] or [N, C, H, W]; or integers of
                any type, [N, 1, H, W], [N, H, W] or [H, W]; where the network has an edge channel, [N, 2, H, W] or [2, H, W]
                with edges (0 or not 0) behind the labels; where it has none, also a picture of labels.
            out: array for the result, of its shape and type, where ``image`` is an array; None makes a new one.

        Returns:
            The translation, of the kind that ``image`` is and, with as many channels as the network gives, of its shape.
            uint8 values are truncated: ``clip((y + 1) / 2 * 255)``. A label map gives a picture if it was one, else float32
            [C, H, W] or [N, C, H, W]; or, into an ``out`` of uint8, [H, W, C] or [N, H, W, C].

        Raises:
            ConfigError: the image is of another kind, type or shape; labels are not those of the network; ``out`` does not fit.
            MemoryError: the system has not enough for images of this size.
        """
        if isinstance(image, np.ndarray):
            return self._run(image, out)
        if out is not None:
            raise ConfigError("out: is for images that are numpy arrays")
        other: Any = image  # its kind is what the lines below find out, which type checkers cannot follow
        if _is_a(other, "torch", "Tensor"):
            other = self._run_tensor(other)
        elif _is_a(other, "PIL.Image", "Image"):
            other = self._run_picture(other)
        else:
            raise ConfigError(f"image: is of type {type(image).__name__}, expected a numpy array, PIL image or torch tensor")
        return other

    def profile(self, image: Any, *, runs: int = 10) -> list[Step]:
        """What every step of the network takes, in the order in which they run; for a batch, all of its images together.

        Args:
            image: as for a call.
            runs: timed runs, after one that is not; on an engine made for it, so that other callers are not counted.

        Raises:
            ConfigError: as a call, or fewer than one run.
        """
        _whole("runs", runs, 1, 10**6, "1")
        engine = self.another(threads=self.threads)
        engine(image)
        engine._native.set_profiling(True)
        timed = []
        for _ in range(runs):
            engine(image)
            timed.append(engine._native.steps())
        return [
            Step(name, statistics.median(steps[i][1] for steps in timed), macs, moved)
            for i, (name, _, macs, moved) in enumerate(timed[0])
        ]

    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of one image, as the network defines them."""
        return self._native.macs(*_sides(height, width))

    def workspace(self, height: int, width: int) -> int:
        """Bytes of memory for activations of images of this size; weights come on top."""
        return self._native.workspace(*_sides(height, width))

    @property
    def threads(self) -> int:
        """Threads that run an image, the caller's included."""
        return self._native.threads

    @property
    def precision(self) -> str:
        """The arithmetic of the convolutions: ``f32`` or ``int8``."""
        return self._native.precision

    @property
    def isa(self) -> str:
        """The instruction set of the kernels."""
        return self._native.isa

    @property
    def in_channels(self) -> int:
        """Channels of the images it takes."""
        return self._native.in_channels

    @property
    def out_channels(self) -> int:
        """Channels of the images it gives."""
        return self._native.out_channels

    @property
    def classes(self) -> int:
        """Classes of the label maps it takes; 0: it takes images."""
        return self._native.classes

    @property
    def edges(self) -> bool:
        """Whether its label maps have an edge channel."""
        return self._native.edges

    @property
    def parameters(self) -> int:
        """Scalars in all trained tensors of the file."""
        return self._native.parameters

    def __repr__(self) -> str:
        return f"Engine({self.in_channels} -> {self.out_channels} channels, threads={self.threads}, isa={self.isa!r})"

    def _run(self, image: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
        channels = self.in_channels
        run: Callable[[Any, Any], None]
        if self.classes and image.dtype != np.float32:
            return self._run_labels(image, out)
        if image.dtype == np.uint8:
            run, axis, layouts = self._native.run_bytes, -1, f"[H, W, {channels}] or [N, H, W, {channels}]"
        elif image.dtype == np.float32:
            run, axis, layouts = self._native.run_planes, -3, f"[{channels}, H, W] or [N, {channels}, H, W]"
        else:
            raise ConfigError(f"image: has type {image.dtype}, expected uint8 (0 to 255) or float32 (-1 to 1)")
        plane = image.ndim == 2 and channels == 1
        x = np.expand_dims(image, -1 if axis == -1 else 0) if plane else image
        if x.ndim not in (3, 4) or x.shape[axis] != channels:
            raise ConfigError(f"image: has shape {list(image.shape)}, expected {layouts} for {image.dtype}")
        batch = np.ascontiguousarray(x if x.ndim == 4 else x[np.newaxis])
        shape = list(batch.shape)
        shape[axis] = self.out_channels
        wanted = shape[4 - x.ndim :]
        if plane and self.out_channels == 1:
            wanted = list(image.shape)
        if out is None:
            out = np.empty(wanted, image.dtype)
        else:
            _check_out(out, wanted, image, image.dtype)
        run(batch, out.reshape(shape))
        return out

    def _run_labels(self, image: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
        if not np.issubdtype(image.dtype, np.integer):
            raise ConfigError(f"image: has type {image.dtype}, expected integers (labels) or float32 (their one-hot image)")
        planes = 1 + self.edges
        x = image
        if not self.edges and x.ndim in (2, 3):
            x = np.expand_dims(x, -3)
        many = x.ndim == 4
        if x.ndim not in (3, 4) or x.shape[-3] != planes:
            expected = "[2, H, W] or [N, 2, H, W] (labels, edges)" if self.edges else "[H, W], [N, H, W] or [N, 1, H, W]"
            raise ConfigError(f"image: has shape {list(image.shape)}, expected {expected} for integer labels")
        if not np.can_cast(x.dtype, np.int32):
            # A label that 32 bits cannot hold must not become one that the network knows.
            x = x.clip(-1, np.iinfo(np.int32).max)
        batch = np.ascontiguousarray(x if many else x[np.newaxis], np.int32)
        count, _, height, width = batch.shape
        in_bytes = isinstance(out, np.ndarray) and out.dtype == np.uint8
        shape = [count, height, width, self.out_channels] if in_bytes else [count, self.out_channels, height, width]
        wanted = shape if many else shape[1:]
        if out is None:
            out = np.empty(wanted, np.float32)
        else:
            _check_out(out, wanted, image, np.uint8 if in_bytes else np.float32)
        self._native.run_labels(batch, out.reshape(shape))
        return out

    def _run_tensor(self, image: torch.Tensor) -> torch.Tensor:
        import torch

        if image.device.type != "cpu" or image.layout != torch.strided:
            raise ConfigError(f"image: is a {image.layout} tensor on {image.device}, expected a dense one on the cpu")
        if image.requires_grad:
            raise ConfigError("image: requires a gradient, which the engine does not compute; pass image.detach()")
        if not self.classes and image.dtype not in (torch.uint8, torch.float32):
            raise ConfigError(f"image: has type {image.dtype}, expected uint8 (0 to 255) or float32 (-1 to 1)")
        if image.dtype == torch.bfloat16:  # which numpy does not know
            raise ConfigError(f"image: has type {image.dtype}, expected integer labels or float32")
        return torch.from_numpy(self._run(image.numpy(), None))

    def _run_picture(self, image: Image.Image) -> Image.Image:
        from PIL import Image

        from gancomp.pictures import eight_bits

        for name in ("out_channels",) if self.classes else ("in_channels", "out_channels"):
            if getattr(self, name) not in (1, 3):
                raise ConfigError(
                    f"image: is a picture, which has 1 or 3 channels; the network's {name} is {getattr(self, name)}"
                )
        if self.edges:
            raise ConfigError("image: is a picture, but the network's label maps have edges too; pass an array of both")
        if self.classes and image.mode not in ("L", "P", "I", "I;16"):
            raise ConfigError(f"image: is a picture of mode {image.mode}, expected one of labels (L, P, I or I;16)")
        try:
            samples = np.asarray(image if self.classes else eight_bits(image, self.in_channels))
        except (ValueError, OSError) as error:
            raise ConfigError(f"image: cannot be read ({first_line(error)})") from None
        photo = np.empty((*samples.shape, self.out_channels), np.uint8) if self.classes else None
        result = self._run(samples, photo)
        return Image.fromarray(result[:, :, 0] if result.ndim == 3 and self.out_channels == 1 else result)


def _library() -> Any:
    try:
        from gancomp import _C
    except ImportError as error:
        raise BackendError(f"the engine needs the native library, which does not load: {first_line(error)}") from None
    return _C


def _is_a(value: object, module: str, name: str) -> bool:
    """Whether ``value`` is an instance of a class, which it cannot be unless somebody has loaded the class's module."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name))


def _threads(threads: int) -> int:
    return _whole("threads", threads, 0, MAX_THREADS, "0 (automatic)")


def _sides(height: int, width: int) -> tuple[int, int]:
    lowest = str(_MIN_SIDE)
    return _whole("height", height, _MIN_SIDE, _MAX_SIDE, lowest), _whole("width", width, _MIN_SIDE, _MAX_SIDE, lowest)


def _whole(name: str, value: object, low: int, high: int, lowest: str) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= high:
        raise ConfigError(f"{name}={value!r}: expected a whole number from {lowest} to {high}")
    return number


def _check_out(out: object, shape: list[int], image: NDArray[Any], dtype: Any) -> None:
    if not isinstance(out, np.ndarray) or out.dtype != dtype or list(out.shape) != shape:
        found = f"{out.dtype} {list(out.shape)}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ConfigError(f"out: is {found}, expected an array {np.dtype(dtype)} {shape}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ConfigError("out: expected a contiguous array that may be written to")
    if np.may_share_memory(out, image):
        raise ConfigError("out: shares memory with the image")
