"""Gradients of a training objective as numbers: their mean and noise, to test estimators and to compare their cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from flowmc.errors import ParameterError
from flowmc.flows import Flow
from flowmc.seeds import torch_generator
from flowmc.theories import Theory
from flowmc.training.forward import SampleLoss
from flowmc.training.losses import Loss, Objective

__all__ = ["GradientStatistics", "gradient_statistics", "summed_gradient"]


@dataclass(frozen=True)
class GradientStatistics:
    """The distribution of an estimated gradient over independent batches.

    Parameters
    ----------
    mean
        Mean of each component, (weights,): an estimate of the gradient, with the standard deviation `error`.
    variance
        Variance of each component of *one batch's* gradient, (weights,).
    n_repeats
        Number of batches.
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    n_repeats: int

    @property
    def error(self) -> NDArray[np.float64]:
        """Standard deviation of the mean, (weights,)."""
        deviation: NDArray[np.float64] = np.sqrt(self.variance / self.n_repeats)
        return deviation

    @property
    def total_variance(self) -> float:
        """Trace of the covariance of one batch's gradient: its mean squared distance from the true one."""
        return float(self.variance.sum())


def summed_gradient(flow: Flow, pieces: Iterable[Loss | SampleLoss]) -> NDArray[np.float64]:
    """Return the gradient of a batch, (weights,), in the order of ``flow.parameters()``; the flow keeps its own.

    Parameters
    ----------
    flow
        The flow.
    pieces
        What an objective yields for it.
    """
    weights = [weight for weight in flow.parameters() if weight.requires_grad]
    total = np.zeros(sum(weight.numel() for weight in weights))
    for piece in pieces:
        parts = torch.autograd.grad(piece.value, weights, allow_unused=True, materialize_grads=True)
        total += torch.cat([part.flatten().double() for part in parts]).cpu().numpy()
    return total


def gradient_statistics(
    objective: Objective, flow: Flow, theory: Theory, n: int, micro_batch: int, n_repeats: int, seed: int
) -> GradientStatistics:
    """Measure mean and variance of an objective's gradient over independent batches.

    Parameters
    ----------
    objective
        The objective, one of `flowmc.training.objectives.OBJECTIVES` or one's own.
    flow
        The flow, at weights that stay as they are.
    theory
        The theory.
    n
        Draws of a batch.
    micro_batch
        Draws of a piece of it; 0 is all of them.
    n_repeats
        Batches, at least 2.
    seed
        Seed of the draws.

    Raises
    ------
    ParameterError
        If there are too few batches for a variance.
    """
    if n_repeats < 2:
        raise ParameterError(got=f"n_repeats = {n_repeats}", expected="at least 2", fix="repeat more often")
    mean: NDArray[np.float64] = np.zeros(())
    squares: NDArray[np.float64] = np.zeros(())
    for repeat in range(n_repeats):
        generator = torch_generator(seed, "gradient", repeat, device=flow.device)
        found = summed_gradient(flow, objective(flow, theory, n, generator, micro_batch))
        # Welford's update: one pass, and no difference of large numbers.
        before = found - mean
        mean = mean + before / (repeat + 1)
        squares = squares + before * (found - mean)
    return GradientStatistics(mean, squares / (n_repeats - 1), n_repeats)
