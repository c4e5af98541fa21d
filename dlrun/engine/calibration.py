"""Calibration of a classifier: how often it is right, by how sure it was."""

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Predicted probabilities and observed frequencies in bins of equal width; bin i is (i / n, (i + 1) / n].

    of: the event with the probability: "the predicted class", or the one class of a binary task.
    counts, confidence, frequency: tensors (bins,) of the rows in each bin, their mean probability, and the share of
        them where the event happened; the means are NaN in an empty bin.
    """

    of: str
    counts: Tensor
    confidence: Tensor
    frequency: Tensor

    @property
    def gaps(self) -> Tensor:
        """|confidence - frequency| of each bin, 0 if it is empty."""
        return (self.confidence - self.frequency).abs().nan_to_num(0.0)

    @property
    def ece(self) -> float:
        """The expected calibration error: the gaps, each weighted by its bin's share of the rows."""
        return self._average(self.gaps)

    @property
    def mean_confidence(self) -> float:
        """Mean probability over all rows."""
        return self._average(self.confidence.nan_to_num(0.0))

    @property
    def mean_frequency(self) -> float:
        """Share of all rows where the event happened: the accuracy, or the share of a binary task's one class."""
        return self._average(self.frequency.nan_to_num(0.0))

    def _average(self, values: Tensor) -> float:
        """Mean over all rows of a value of each bin."""
        return float((values * self.counts).sum() / self.counts.sum().clamp_min(1))


def compute_calibration(probability: Tensor, happened: Tensor, of: str, bins: int = BINS) -> Calibration:
    """Calibration of probabilities (N,) in 0..1 of an event that happened (N,) or not; of: the event.

    Source: Guo et al. 2017, "On calibration of modern neural networks", equations 2 to 5, for the predicted class; for
    the one class of a binary task the same sums give the reliability diagram of DeGroot & Fienberg 1983.
    """
    probability = probability.double()
    bin_numbers = ((probability * bins).ceil().long() - 1).clamp(0, bins - 1)
    counts = torch.bincount(bin_numbers, minlength=bins)

    zeros = torch.zeros(bins, dtype=torch.float64)
    confidence = zeros.index_add(0, bin_numbers, probability) / counts
    frequency = zeros.index_add(0, bin_numbers, happened.double()) / counts
    return Calibration(of, counts, confidence, frequency)
