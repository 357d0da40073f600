"""The ResNet generator of CycleGAN and pix2pix, dense or with separable residual blocks, at any widths.

Layer indices and tensor names are those of the published checkpoints (a ``Sequential`` called ``model``; paddings, ReLUs and
the final tanh hold their index without holding tensors). Source: Johnson et al. 2016; CycleGAN, appendix 7.2;
GAN Compression, section 3.2 and the released configurations.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from gancomp import ops
from gancomp.errors import ConfigError
from gancomp.models.base import check_choice, check_range, no_layer, register_network
from gancomp.models.channels import format_config, parse_config
from gancomp.models.sliced import SlicedGenerator
from gancomp.nn import SeparableConv2d, SlicedConv2d, SlicedConvTranspose2d, make_norm

_PADDING_MODES = {"reflect": "reflect", "replicate": "replicate", "zero": "zeros"}
_WIDTHS = ("stem", "down", "stream", "up", "last")


def hidden_slots(n_blocks: int) -> int:
    """How many slots of a configuration set the blocks' hidden widths: three, or one per block below three blocks."""
    return min(3, n_blocks)


@dataclass(frozen=True)
class ResnetConfig:
    """Every width of a ResNet generator, in real channels.

    ``stem`` and ``last`` are the widths at full resolution, ``down`` and ``up`` at half, ``stream`` that of the residual
    stream at a quarter, ``hidden[i]`` that inside block i. ``separable`` decomposes the blocks' convolutions.
    """

    stem: int = 64
    down: int = 128
    stream: int = 256
    hidden: tuple[int, ...] = (256,) * 9
    up: int = 128
    last: int = 64
    in_channels: int = 3
    out_channels: int = 3
    separable: bool = False
    norm: str = "instance"
    padding: str = "reflect"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("stem", "down", "stream", "up", "last", "in_channels", "out_channels"):
            check_range("resnet", name, getattr(self, name), 1)
        for width in self.hidden:
            check_range("resnet", "hidden", width, 1)
        check_choice("resnet", "norm", self.norm, ("instance", "instance_affine", "batch", "none"))
        check_choice("resnet", "padding", self.padding, tuple(_PADDING_MODES))
        check_range("resnet", "dropout", self.dropout, 0.0, 0.99)

    @classmethod
    def uniform(cls, ngf: int, n_blocks: int = 9, *, separable: bool = False, **fields) -> ResnetConfig:
        """The plain network of base width ``ngf``: widths ngf, 2 ngf, 4 ngf, 2 ngf, ngf; dense unless ``separable``."""
        check_range("resnet", "ngf", ngf, 1)
        check_range("resnet", "n_blocks", n_blocks, 0, 1000)
        return cls.from_channels((ngf,) * (5 + hidden_slots(n_blocks)), n_blocks, separable=separable, **fields)

    @classmethod
    def from_channels(
        cls, channels: Sequence[int], n_blocks: int = 9, *, legacy: bool = False, separable: bool = True, **fields
    ) -> ResnetConfig:
        """Widths from the base channel counts of a configuration.

        Eight numbers c0..c7 (for three blocks or more): stem c0, down 2 c1, stream 4 c2, hidden 4 c3, 4 c4 and 4 c5 for the
        first, second and last third of the blocks, up 2 c6, last c7. Six numbers: one hidden count for all blocks; with
        ``legacy`` only every third block has it and the others keep the stream's width, as the first released models did.

        Raises:
            ConfigError: wrong number of channel counts.
        """
        slots = hidden_slots(n_blocks)
        channels = tuple(channels)
        for count in channels:
            check_range("resnet", "config_str", count, 1)
        allowed = [6] if legacy else [5 + slots, 6] if slots > 1 else [5 + slots]
        if len(channels) not in allowed:
            raise ConfigError(
                f"config_str={format_config(channels)!r}: has {len(channels)} numbers, "
                f"a generator of {n_blocks} blocks takes {' or '.join(map(str, allowed))}"
            )
        inner = channels[3:-2]
        if legacy:
            hidden = tuple(4 * (inner[0] if block % 3 == 0 else channels[2]) for block in range(n_blocks))
        else:
            hidden = tuple(4 * inner[block * len(inner) // n_blocks] for block in range(n_blocks))
        return cls(
            stem=channels[0],
            down=2 * channels[1],
            stream=4 * channels[2],
            hidden=hidden,
            up=2 * channels[-2],
            last=channels[-1],
            separable=separable,
            **fields,
        )

    @classmethod
    def parse(cls, text: str, n_blocks: int = 9, **options) -> ResnetConfig:
        """As :meth:`from_channels`, from a ``config_str``."""
        return cls.from_channels(parse_config(text), n_blocks, **options)

    def with_channels(self, channels: Sequence[int]) -> ResnetConfig:
        """The same network at the widths of a configuration; see :meth:`from_channels`."""
        return self.with_widths([*ResnetConfig.from_channels(channels, self.n_blocks).widths.values()])

    @property
    def widths(self) -> dict[str, int]:
        """Every width that a sub-network may have less of, by name."""
        plain = {name: getattr(self, name) for name in _WIDTHS}
        return plain | {f"hidden[{block}]": width for block, width in enumerate(self.hidden)}

    def with_widths(self, widths: Sequence[int]) -> ResnetConfig:
        """The same network at other widths, in the order of :attr:`widths`."""
        plain = dict(zip(_WIDTHS, widths, strict=False))
        return dataclasses.replace(self, **plain, hidden=tuple(widths[len(_WIDTHS) :]))

    @property
    def slots(self) -> int:
        """How many base channel counts a configuration has."""
        return 5 + hidden_slots(self.n_blocks)

    @property
    def n_blocks(self) -> int:
        return len(self.hidden)

    @property
    def norms_instances(self) -> bool:
        """Whether the norms take an image's own mean away, and with it what a bias added."""
        return self.norm in ("instance", "instance_affine")

    @property
    def channels(self) -> tuple[int, ...] | None:
        """The base channel counts that give these widths, or None where no configuration does."""
        slots = hidden_slots(self.n_blocks)
        inner = [self.hidden[-(-slot * self.n_blocks // slots)] for slot in range(slots)]
        scaled = [(self.stem, 1), (self.down, 2), (self.stream, 4), *[(w, 4) for w in inner], (self.up, 2), (self.last, 1)]
        if any(width % factor for width, factor in scaled):
            return None
        channels = tuple(width // factor for width, factor in scaled)
        same = ResnetConfig.from_channels(channels, self.n_blocks).hidden == self.hidden
        return channels if same else None

    @property
    def config_str(self) -> str | None:
        """The channel counts as text, or None where no configuration gives these widths."""
        return None if self.channels is None else format_config(self.channels)


class ResnetBlock(nn.Module):
    """``x + norm(conv(dropout(relu(norm(conv(x))))))``, the convolutions dense 3x3 or separable; nothing after the sum.

    A separable block with plain InstanceNorms and reflection is one op, unless inside :func:`layer_by_layer`.
    """

    def __init__(self, stream: int, hidden: int, config: ResnetConfig) -> None:
        super().__init__()
        mode = _PADDING_MODES[config.padding]

        def conv(inputs: int, outputs: int) -> nn.Module:
            if config.separable:
                return SeparableConv2d(inputs, outputs, mode, before_norm=config.norms_instances)
            bias = config.norm != "batch"
            return SlicedConv2d(inputs, outputs, 3, padding=1, padding_mode=mode, bias=bias, before_norm=config.norms_instances)

        # Identities hold the published indices of the padding (0, 5) and the ReLU (3), which are folded into their neighbours.
        self.conv_block = nn.Sequential(
            nn.Identity(),
            conv(stream, hidden),
            make_norm(config.norm, hidden, relu=True),
            nn.Identity(),
            nn.Dropout(config.dropout),
            nn.Identity(),
            conv(hidden, stream),
            make_norm(config.norm, stream),
        )

        self.fused = config.separable and config.norm == "instance" and config.padding == "reflect"

    def forward(self, x: Tensor) -> Tensor:
        """Refine ``x`` [N, stream, H, W]."""
        _, conv1, norm1, _, dropout, _, conv2, norm2 = self.conv_block
        if self.fused:
            return ops.separable_resblock(
                x,
                conv1.conv[0].weight,
                conv1.conv[2].weight,
                conv2.conv[0].weight,
                conv2.conv[2].weight,
                hidden=conv1.active_out_channels,
                dropout=dropout.p if self.training else 0.0,
                eps=norm1.eps,
            )
        return norm2(conv2(dropout(norm1(conv1(x)))), residual=x)


@contextlib.contextmanager
def layer_by_layer(network: nn.Module) -> Iterator[None]:
    """Inside, the residual blocks of ``network`` run their layers, for whoever hooks or replaces one of them."""
    blocks = [block for block in network.modules() if isinstance(block, ResnetBlock) and block.fused]
    for block in blocks:
        block.fused = False
    try:
        yield
    finally:
        for block in blocks:
            block.fused = True


@register_network("resnet", ResnetConfig)
class ResnetGenerator(SlicedGenerator):
    """7x7 stem, two stride-2 convolutions, residual blocks, two transposed convolutions, 7x7 head, tanh.

    Args:
        config: every width; ``in_channels`` x H x W images in [-1, 1] with H and W multiples of 4 map to equal sizes.
    """

    config: ResnetConfig
    size_multiple = 4

    def __init__(self, config: ResnetConfig) -> None:
        super().__init__()
        self.config = config
        mode = _PADDING_MODES[config.padding]
        bias, before_norm = config.norm != "batch", config.norms_instances

        def norm(channels: int) -> list[nn.Module]:
            return [make_norm(config.norm, channels, relu=True), nn.Identity()]

        def up(inputs: int, outputs: int) -> nn.Module:
            return SlicedConvTranspose2d(
                inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=bias, before_norm=before_norm
            )

        def down(inputs: int, outputs: int) -> nn.Module:
            return SlicedConv2d(inputs, outputs, 3, stride=2, padding=1, bias=bias, before_norm=before_norm)

        self.model = nn.Sequential(
            nn.Identity(),
            SlicedConv2d(config.in_channels, config.stem, 7, padding=3, padding_mode=mode, bias=bias, before_norm=before_norm),
            *norm(config.stem),
            down(config.stem, config.down),
            *norm(config.down),
            down(config.down, config.stream),
            *norm(config.stream),
            *[ResnetBlock(config.stream, hidden, config) for hidden in config.hidden],
            up(config.stream, config.up),
            *norm(config.up),
            up(config.up, config.last),
            *norm(config.last),
            nn.Identity(),
            SlicedConv2d(config.last, config.out_channels, 7, padding=3, padding_mode=mode),
            nn.Tanh(),
        )

    @property
    def blocks(self) -> nn.Sequential:
        """The residual blocks."""
        return self.model[10 : 10 + self.config.n_blocks]

    @property
    def feature_layers(self) -> tuple[str, ...]:
        """Layers whose outputs distillation uses: after the last downsampling and after every third of the blocks."""
        n = self.config.n_blocks
        thirds = sorted({-(-(part + 1) * n // 3) for part in range(3)}) if n else []
        return ("model.9", *[f"model.{9 + end}" for end in thirds])

    def feature_channels(self) -> dict[str, int]:
        """Channel counts of :meth:`forward_features`, by layer name."""
        return dict.fromkeys(self.feature_layers, self.config.stream)

    def forward(self, x: Tensor) -> Tensor:
        """Translate ``x`` [N, in_channels, H, W] in [-1, 1] into [N, out_channels, H, W] in [-1, 1]."""
        self.check_input(x)
        return self.model(x)

    def forward_features(self, x: Tensor, layers: Sequence[str] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """As :meth:`forward`, and the outputs of layers ``model.I``; those of :attr:`feature_layers` are [N, stream, H/4, W/4].

        Raises:
            ConfigError: a name of another form: what is inside a block may be one op with its neighbours.
        """
        self.check_input(x)
        names = [f"model.{index}" for index in range(len(self.model))]
        wanted = self.feature_layers if layers is None else layers
        for name in wanted:
            if name not in names:
                raise no_layer(self, name)
        outputs: dict[str, Tensor] = {}
        for name, layer in zip(names, self.model, strict=True):
            x = layer(x)
            if name in wanted:
                outputs[name] = x
        return x, {name: outputs[name] for name in wanted}

    def check_input(self, x: Tensor) -> None:
        """Raise a ConfigError unless ``x`` fits the network."""
        if x.dim() != 4 or x.shape[1] != self.config.in_channels:
            raise ConfigError(f"x of shape {list(x.shape)}: expected [N, {self.config.in_channels}, H, W]")
        if min(x.shape[2:]) < 8 or x.shape[2] % 4 or x.shape[3] % 4:
            raise ConfigError(f"x of shape {list(x.shape)}: height and width must be multiples of 4, at least 8")

    def _use(self, config: ResnetConfig) -> None:
        model, n = self.model, self.config.n_blocks
        model[1].active_out_channels = config.stem
        model[4].active_out_channels = config.down
        model[7].active_out_channels = config.stream
        for block, hidden in zip(self.blocks, config.hidden, strict=True):
            block.conv_block[1].active_out_channels = hidden
            block.conv_block[6].active_out_channels = config.stream
        model[10 + n].active_out_channels = config.up
        model[13 + n].active_out_channels = config.last
