"""What is measured of two modes: the share of each in flow draws, and what these are worth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flowmc.flows import load_flow
from flowmc.seeds import torch_generator
from flowmc_analysis.estimate import Estimate
from flowmc_analysis.free_energy import log_partition_function, log_partition_function_variational
from flowmc_analysis.unseen import unseen_states
from flowmc_analysis.weights import acceptance_independence, ess_forward, ess_reverse
from flowmc_ensembles import Ensemble

__all__ = ["BRIDGE", "FlowQuality", "measure_flow", "target_samples"]

BRIDGE = 0.3
"""Between the modes is where |m| is below this."""
THINNED = 20
CHUNK = 1024


def target_samples(path: Path) -> NDArray[np.float64]:
    """Return configurations of HMC, thinned, and their mirror images: samples of both modes with their exact weights."""
    fields = np.asarray(Ensemble(path).streams[0].configurations(), dtype=np.float64)[::THINNED]
    flat = fields.reshape(-1, *fields.shape[2:])
    return np.concatenate([flat, -flat])


@dataclass(frozen=True)
class FlowQuality:
    """What draws of a flow are like.

    Parameters
    ----------
    magnetisation
        Mean field of each draw.
    positive, bridge
        Shares of the draws with m > 0, and with a modulus of m below `BRIDGE`.
    acceptance, ess_reverse
        Of independence Metropolis, and of importance sampling, by the draws.
    ess_forward
        Effective fraction of the draws as seen by samples of the target.
    unseen
        Share of those samples whose weight exceeds e times that of every draw.
    log_z, bound
        ln Z by importance sampling, and the variational bound E_q[log w].
    steps, seconds
        Of the training, what the samples cost included.
    """

    magnetisation: NDArray[np.float64]
    positive: float
    bridge: float
    acceptance: float
    ess_reverse: float
    ess_forward: float
    unseen: float
    log_z: Estimate
    bound: Estimate
    steps: int
    seconds: float


def measure_flow(path: Path, samples: NDArray[np.float64], n: int) -> FlowQuality:
    """Draw from a flow, and weigh its draws and samples of the target, in float64.

    Parameters
    ----------
    path
        The flow file.
    samples
        Samples of the target, ``(N, *shape)``.
    n
        Draws, a multiple of `CHUNK` or fewer.
    """
    flow, saved = load_flow(path)
    flow.double()
    drawn, log_w = [], []
    with torch.inference_mode():
        for number in range(max(n // CHUNK, 1)):
            field, log_q = flow.sample(min(n, CHUNK), torch_generator(5, path.stem, number))
            drawn.append(field.flatten(1).mean(1).numpy())
            log_w.append((-saved.theory.action(field) - log_q).numpy())
        log_w_of_samples = [
            (-saved.theory.action(part) - flow.log_prob(part)).numpy()
            for part in torch.split(torch.as_tensor(samples), CHUNK)
        ]
    weights, states, m = (np.concatenate(parts) for parts in (log_w, log_w_of_samples, drawn))
    # Where the inverse map overflows the flow has no density.
    states = np.where(np.isnan(states), np.inf, states)
    return FlowQuality(
        magnetisation=m,
        positive=float((m > 0).mean()),
        bridge=float((np.abs(m) < BRIDGE).mean()),
        acceptance=acceptance_independence(weights),
        ess_reverse=ess_reverse(weights),
        ess_forward=ess_forward(states, weights),
        unseen=unseen_states(weights[None], states[None]).share,
        log_z=log_partition_function(weights),
        bound=log_partition_function_variational(weights),
        steps=int(saved.training["steps"]),
        seconds=float(saved.training["seconds"]),
    )
