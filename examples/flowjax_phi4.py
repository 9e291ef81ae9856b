"""A flow of flowjax for φ⁴ theory on 8 × 8 sites, trained with flowjax alone, then used by flowmc.

Train it (some minutes; the weights go into runs/flowjax_phi4.eqx), certify it, and make an ensemble with it:

    python examples/flowjax_phi4.py
    flowmc certify examples/flowjax_phi4.py:proposal --save runs/flowjax_phi4.json
    flowmc sample examples/phi4_8x8.toml --flow examples/flowjax_phi4.py:proposal --certificate runs/flowjax_phi4.json \
        --output runs/flowjax_phi4.h5
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from flowjax.bijections import RationalQuadraticSpline
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow
from flowjax.train import fit_to_key_based_loss
from flowjax.train.losses import ElboLoss

from flowmc.proposals import Proposal
from flowmc.theories import Phi4
from flowmc_adapters import flowjax as adapter

WEIGHTS = Path(__file__).resolve().parents[1] / "runs" / "flowjax_phi4.eqx"
THEORY = Phi4((8, 8), -4.0, 8.0)
STEPS, BATCH, RATE = 3000, 256, 2e-3
LAYERS, KNOTS = 6, 4


def build() -> Any:
    """Return couplings by rational-quadratic splines between halves of the sites; draws are the fast direction."""
    return coupling_flow(
        jax.random.key(0),
        base_dist=Normal(jnp.zeros(THEORY.volume)),
        transformer=RationalQuadraticSpline(knots=KNOTS, interval=4),
        flow_layers=LAYERS,
        nn_width=64,
        nn_depth=2,
        invert=False,
    )


def proposal() -> Proposal:
    """Return the trained flow as a proposal, in double precision."""
    with jax.enable_x64(False):
        flow, _ = eqx.tree_deserialise_leaves(WEIGHTS, (build(), 0.0))
    return adapter.proposal(flow, event_shape=THEORY.field_shape)


def TRAINING_SECONDS() -> float:
    """Return what the training took, in seconds: reports count it."""
    with jax.enable_x64(False):
        _, seconds = eqx.tree_deserialise_leaves(WEIGHTS, (build(), 0.0))
    return float(seconds)


def train(steps: int = STEPS) -> None:
    """Minimise the reverse Kullback-Leibler divergence with flowjax's own loop."""

    def logdensity(field: jax.Array) -> jax.Array:
        return -THEORY.action(field.reshape(1, *THEORY.shape))[0]

    began = time.perf_counter()
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(optax.cosine_decay_schedule(RATE, steps)))
    loss = ElboLoss(logdensity, num_samples=BATCH)
    flow, _ = fit_to_key_based_loss(jax.random.key(1), build(), loss_fn=loss, steps=steps, optimizer=optimizer)
    WEIGHTS.parent.mkdir(exist_ok=True)
    eqx.tree_serialise_leaves(WEIGHTS, (flow, time.perf_counter() - began))


if __name__ == "__main__":
    train(*map(int, sys.argv[1:]))
