"""Append blocks to an ensemble until killed: run as a script by the kill test, which also takes `block` from here."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from flowmc_ensembles import EnsembleDescription, EnsembleWriter, StreamDescription

ROWS, CHAINS, LATTICE = 4, 3, (4, 6)


def descriptions() -> tuple[EnsembleDescription, StreamDescription]:
    ensemble = EnsembleDescription(
        theory="phi4",
        action={"name": "phi4", "shape": list(LATTICE), "m2": -4.0, "lam": 8.0},
        lattice_size=LATTICE,
        convention="arXiv:1904.12072",
        run={"versions": {"numpy": np.__version__}, "training_seconds": 12.5},
    )
    stream = StreamDescription(
        seed=2**64 - 1, algorithm="hybrid", algorithm_parameters={"n_flow": 3}, n_chains=CHAINS, freeze_update=7
    )
    return ensemble, stream


def block(number: int) -> dict[str, Any]:
    """Block ``number`` of a run, the same whenever it is made."""
    rng = np.random.default_rng(number)
    update = np.arange(number * ROWS, (number + 1) * ROWS)
    per_chain = (ROWS, CHAINS)
    return {
        "trajectory": update,
        "configurations": {"phi": rng.normal(size=(*per_chain, *LATTICE)), "action": rng.normal(size=per_chain)},
        "history": {
            "update": update,
            "proposal_kind": (update % 2).astype(np.uint8),
            "accepted": rng.integers(0, 2, per_chain, dtype=np.uint8),
            "delta_H": np.where(update[:, None] % 2, np.nan, rng.normal(size=per_chain)),
            "log_weight": rng.normal(size=per_chain),
            "log_weight_current": rng.normal(size=per_chain),
            "action": rng.normal(size=per_chain),
            "walltime": rng.uniform(size=ROWS),
        },
        "observables": {"virial": rng.normal(size=per_chain), "two_point": rng.normal(size=(*per_chain, LATTICE[0]))},
        "checkpoint": {
            "field": rng.normal(size=(CHAINS, *LATTICE)),
            "tuned": rng.integers(0, 2, CHAINS).astype(bool),
            "next_block": number + 1,
            "step_size": float(rng.uniform()),
            "phase": "production" * (1 + number % 3),
        },
    }


def main(path: str) -> None:
    with EnsembleWriter.open(path) as writer:
        state = writer.checkpoint()
        number = 0 if state is None else int(state["next_block"])
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            writer.append(**block(number))
            number += 1


if __name__ == "__main__":
    main(sys.argv[1])
