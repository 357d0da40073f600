"""An exponential moving average of a network's weights, or nothing where it is off."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage:
    """``average <- decay * average + (1 - decay) * weights`` after every step; ``decay`` 0 keeps the weights themselves."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._model = None
        if decay > 0:
            self._model = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    def modules(self) -> dict[str, nn.Module]:
        """What a saved state has to hold."""
        return {} if self._model is None else {"average": self._model}

    def update(self, network: nn.Module) -> None:
        """Take in the weights of ``network`` after a step."""
        if self._model is not None:
            self._model.update_parameters(network)

    def of(self, network: nn.Module) -> nn.Module:
        """The averaged network, or ``network`` itself where averaging is off."""
        return network if self._model is None else self._model.module
