"""A flow of zuko for φ⁴ theory on 8 × 8 sites, trained with zuko and torch alone, then used by flowmc.

Train it (some minutes; the weights go into runs/zuko_phi4.pt), certify it, and make an ensemble with it:

    python examples/zuko_phi4.py
    flowmc certify examples/zuko_phi4.py:proposal --save runs/zuko_phi4.json
    flowmc sample examples/phi4_8x8.toml --flow examples/zuko_phi4.py:proposal --certificate runs/zuko_phi4.json \
        --output runs/zuko_phi4.h5
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import zuko
from tqdm import trange

from flowmc.proposals import Proposal
from flowmc.theories import Phi4
from flowmc_adapters import zuko as adapter

WEIGHTS = Path(__file__).resolve().parents[1] / "runs" / "zuko_phi4.pt"
THEORY = Phi4((8, 8), -4.0, 8.0)
STEPS, BATCH, RATE = 3000, 256, 2e-3
LAYERS, BINS = 6, 4


def build() -> zuko.flows.Flow:
    """Return couplings by rational-quadratic splines between the even and the odd sites."""
    torch.manual_seed(0)
    even = (torch.arange(8)[:, None] + torch.arange(8)).flatten() % 2 == 0
    couplings = [
        zuko.flows.GeneralCouplingTransform(
            THEORY.volume,
            mask=even if number % 2 else ~even,
            univariate=zuko.transforms.MonotonicRQSTransform,
            shapes=[(BINS,), (BINS,), (BINS - 1,)],
            hidden_features=(64, 64),
        )
        for number in range(LAYERS)
    ]
    width = torch.zeros(THEORY.volume), torch.ones(THEORY.volume)
    base = zuko.flows.UnconditionalDistribution(zuko.distributions.DiagNormal, *width, buffer=True)
    return zuko.flows.Flow(couplings, base)


def proposal() -> Proposal:
    """Return the trained flow as a proposal, in double precision."""
    flow = build()
    flow.load_state_dict(torch.load(WEIGHTS, weights_only=True)["flow"])
    return adapter.proposal(flow, event_shape=THEORY.field_shape, dtype="float64")


def TRAINING_SECONDS() -> float:
    """Return what the training took, in seconds: reports count it."""
    return float(torch.load(WEIGHTS, weights_only=True)["seconds"])


def train(steps: int = STEPS) -> None:
    """Minimise the reverse Kullback-Leibler divergence, the mean of log q + S over the flow's own draws."""
    torch.set_num_threads(1)
    flow = build()
    optimizer = torch.optim.Adam(flow.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    began = time.perf_counter()
    for _ in (bar := trange(steps)):
        optimizer.zero_grad()
        field, log_q = flow().rsample_and_log_prob((BATCH,))
        log_w = -THEORY.action(field.reshape(-1, *THEORY.shape)) - log_q
        (-log_w.mean()).backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        weight = torch.softmax(log_w.detach().double(), 0)
        bar.set_postfix(ESS=f"{1 / (BATCH * (weight**2).sum().item()):.2f}")
    WEIGHTS.parent.mkdir(exist_ok=True)
    torch.save({"flow": flow.state_dict(), "seconds": time.perf_counter() - began}, WEIGHTS)


if __name__ == "__main__":
    train(*map(int, sys.argv[1:]))
