"""Whether probabilities mean what they say: how often a classifier is right, by how sure it was."""

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """What a classifier said and what came true, in bins of equal width; bin i is (i / n, (i + 1) / n].

    Tensors of shape (bins,): rows in each bin, and the means over them, NaN in an empty bin.
    """

    of: str  # what has the probability: "the predicted class", or the one class of a binary task
    counts: Tensor
    confidence: Tensor  # mean probability
    frequency: Tensor  # share of the rows where it came true

    @property
    def gaps(self) -> Tensor:
        """|confidence - frequency| a bin, 0 where it is empty."""
        return (self.confidence - self.frequency).abs().nan_to_num(0.0)

    @property
    def ece(self) -> float:
        """The expected calibration error: the gaps, each weighted by its bin's share of the rows."""
        return float((self.gaps * self.counts).sum() / self.counts.sum().clamp_min(1))

    @property
    def mean_confidence(self) -> float:
        """Over all rows."""
        return float((self.confidence.nan_to_num(0.0) * self.counts).sum() / self.counts.sum().clamp_min(1))

    @property
    def mean_frequency(self) -> float:
        """Over all rows: the accuracy, or the share of the one class of a binary task."""
        return float((self.frequency.nan_to_num(0.0) * self.counts).sum() / self.counts.sum().clamp_min(1))


def compute_calibration(probability: Tensor, happened: Tensor, of: str, bins: int = BINS) -> Calibration:
    """probability (N,) in 0..1 of an event, and whether it happened (N,).

    Source: Guo et al. 2017, "On calibration of modern neural networks", equations 2 to 5, for the predicted class; for
    the one class of a binary task the same sums give the reliability diagram of DeGroot & Fienberg 1983.
    """
    p, true = probability.double(), happened.double()
    place = ((p * bins).ceil().long() - 1).clamp(0, bins - 1)
    zeros = torch.zeros(bins, dtype=torch.float64)
    counts = torch.bincount(place, minlength=bins)
    said, came = (zeros.index_add(0, place, values) / counts for values in (p, true))
    return Calibration(of, counts, said, came)
