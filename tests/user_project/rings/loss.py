"""Cross-entropy of answers that are divided by a temperature, which is learned along."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Tempered(nn.Module):
    """Its parameter is trained and saved like those of the net, and its buffer counts the calls in training."""

    calls: Tensor

    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(start).log())
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over a batch: outputs (N, classes), targets (N,)."""
        if torch.is_grad_enabled():
            self.calls += 1
        return F.cross_entropy(outputs / self.log_temperature.exp(), targets)
