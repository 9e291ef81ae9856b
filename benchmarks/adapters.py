"""Every adapter of the public list: contract, certificate, observables of a chain, and what a proposal costs.

``python -m benchmarks.adapters --json docs/results/adapters.json`` measures everything in some minutes; ``--quick``
trains less, on a smaller lattice. Both need ``pip install -c constraints.txt -e '.[benchmarks]'``.

- For each library a flow is trained on exact draws of a free field on 4 × 4 sites (spins: reinforced on the Ising model),
  in float64 (`benchmarks.adapter_flows`).
- Contract: the tests of `flowmc.testing.ProposalContract`, one by one. Certificate: as production measures it; the figure
  is the largest difference in nats between log q of draws and ``log_prob`` of them.
- Observables: a hybrid of HMC (spins: heat bath) and the flow's proposals against exact values; the figure is the largest
  |z|, the target that of a family of that size at a level of one in a thousand.
- Cost: of flows on 8 × 8 sites (flow matching, whose divergence takes as many backward passes as there are sites, and
  spins: 4 × 4), drawing 1024 fields with log q as NumPy arrays through the adapter, over the library's own call (compiled
  and waited for in JAX, with `no_grad` in torch). Both take turns in one process, with one thread of torch; the value is
  the median over the turns of the ratio of processor times.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm

from benchmarks.adapter_flows import Setting, Trained, trained
from benchmarks.claims import Claim, parser, write_claims
from benchmarks.measuring import INFORMATIVE, take_turns
from flowmc.kernels import (
    HMC,
    Checkerboard,
    Cycle,
    CycleMember,
    FlowProposals,
    Independence,
    LocalUpdates,
    Trajectories,
)
from flowmc.proposals import Proposal, certify
from flowmc.sampling import MemoryStore, SamplingPlan, sample
from flowmc.seeds import fold
from flowmc.testing import ProposalContract
from flowmc.theories import FreeScalar, Ising
from flowmc_analysis.gamma import gamma_method

FULL = Setting((4, 4), 64, 300, (4, 4), n_draws=2048)
QUICK = Setting((4, 2), 16, 60, (2, 4))
TIMED = Setting((8, 8), 64, 5, (4, 4))
SMALLER = {"flow_matching": Setting((4, 4), 32, 5)}
BATCH = 1024
TARGET = 1.1
LEVEL = 1e-3
TURNS, SECONDS = 15, 0.1
CHAINS, CYCLES, QUICK_CYCLES = 32, 1000, 200


def contract_claim(name: str, found: Proposal) -> Claim:
    """Run the tests of the contract."""
    contract = ProposalContract()
    tests = [test for test in dir(contract) if test.startswith("test_")]
    failures = []
    for test in tests:
        try:
            getattr(contract, test)(found)
        except Exception as error:  # noqa: BLE001 - whatever a test fails with is a finding
            failures.append(f"{test}: {error}")
    said = "; ".join(failures) or "all passed"
    return Claim(f"{name}: tests of the contract", len(tests) - len(failures), said, f"{len(tests)}", "", not failures)


def certificate_claim(name: str, found: Proposal) -> Claim:
    """Measure the certificate."""
    certificate = certify(found, fold(1, name))
    checks = {check.name: check for check in certificate.checks}
    forward = checks["forward log q against log_prob"]
    failed = [check.name for check in certificate.checks if not check.passed]
    said = f"{len(checks)} checks" + (f", failed: {'; '.join(failed)}" if failed else ", all passed")
    what = f"{name}: certificate, log q of draws against log_prob"
    return Claim(what, forward.value, said, f"<= {forward.tolerance:g}, all passed", "nats", certificate.passed)


def exact_means(theory: FreeScalar | Ising) -> dict[str, float]:
    """Return exact means of the observables."""
    if isinstance(theory, Ising):
        numbers = np.arange(2**theory.volume)
        spins: NDArray[Any] = 2 * (numbers[:, None] >> np.arange(theory.volume) & 1) - 1
        field = spins.reshape(-1, *theory.shape)
        weight = np.exp(-theory.action(field))
        return {key: float(np.average(one, weights=weight)) for key, one in observables(theory, field).items()}
    frequencies = np.meshgrid(*(np.arange(extent) / extent for extent in theory.shape), indexing="ij")
    # <phi phi> in momentum space is 1 / (2 (p^2 + m^2)) with the lattice momenta.
    momenta = (4 * np.sin(np.pi * np.stack(frequencies)) ** 2).sum(0)
    propagator = 0.5 / (momenta + theory.mass**2)
    return {
        "action": 0.5 * theory.volume,
        "neighbours": float((propagator * np.cos(2 * np.pi * frequencies[0])).mean()),
        "square": float(propagator.mean()),
        "susceptibility": float(propagator.flat[0]),
    }


def observables(theory: FreeScalar | Ising, field: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Measure fields (n, T, X): each (n,)."""
    volume = theory.volume
    found = {
        "action": theory.action(field),
        "neighbours": (field * np.roll(field, 1, axis=1)).mean(axis=(1, 2)),
        "susceptibility": field.sum(axis=(1, 2)) ** 2 / volume,
    }
    if isinstance(theory, FreeScalar):
        found["square"] = (field**2).mean(axis=(1, 2))
    return found


def observables_claim(name: str, found: Proposal, theory: FreeScalar | Ising, cycles: int) -> Claim:
    """Run a hybrid, and compare its observables with exact ones."""
    seed = fold(2, name)
    local: CycleMember
    if isinstance(theory, Ising):
        local = LocalUpdates(Checkerboard(theory, "heat_bath"), seed, 1)
    else:
        # A length at which no mode comes back to itself: the energies of those that do hardly change.
        local = Trajectories.build(HMC(theory), seed, 1, trajectory_length=0.6, step_size=0.1, target_acceptance=None)
    cycle = Cycle(theory, (local, FlowProposals(Independence(theory), found, seed, 4)))
    store = MemoryStore()
    plan = SamplingPlan(chains=CHAINS, cycles=cycles, thermalisation=100, tuning=0, cycles_per_block=50)
    sample(cycle, plan, store, lambda: found.sample(fold(seed, "start"), CHAINS)[0].astype(theory.space.dtype))
    fields = store.table("configurations", theory.space.field_name)
    flat = fields.reshape(-1, *theory.shape)
    exact, scores = exact_means(theory), {}
    for key, values in observables(theory, flat).items():
        estimate = gamma_method(values.reshape(fields.shape[:2]).T).estimate
        scores[key] = abs(estimate.value - exact[key]) / estimate.error
    accepted = store.table("history", "accepted")[~np.isnan(store.table("history", "log_weight"))].mean()
    limit = float(norm.isf(0.5 * LEVEL / len(scores)))
    worst = max(scores, key=lambda key: scores[key])
    said = f"{worst}, {len(scores)} observables; the flow accepts {accepted:.2f}"
    return Claim(
        f"{name}: largest |z| against exact values", scores[worst], said, f"< {limit:.1f}", "", scores[worst] < limit
    )


def cost_claims(name: str, found: Trained) -> list[Claim]:
    """Compare drawing through the adapter with the library's own call."""
    seeds = iter(range(10**9))

    def adapted() -> object:
        return found.proposal.sample(next(seeds), BATCH)

    def bare() -> object:
        with torch.no_grad():
            return found.bare(BATCH)

    timings = take_turns({"adapter": adapted, "bare": bare}, TURNS, SECONDS)
    ratios = timings["adapter"].over(timings["bare"])
    value = median(ratios)
    spread = f"{min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} turns"
    each = 1e6 * median(timings["adapter"].cpu) / BATCH
    return [
        Claim(
            f"{name}: cost of a proposal over the library's own call",
            value,
            spread,
            f"<= {TARGET}",
            "",
            value <= TARGET,
        ),
        Claim(f"{name}: a proposal", each, f"in batches of {BATCH}", INFORMATIVE, "us", holds=True),
    ]


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "").parse_args()
    jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]
    torch.set_num_threads(1)
    setting = QUICK if arguments.quick else FULL
    claims = []
    with tempfile.TemporaryDirectory() as folder:
        builders: dict[str, Callable[[], Trained]] = trained(Path(folder), setting)
        for name, build in builders.items():
            print(name, flush=True)
            torch.manual_seed(1)
            found = build()
            theory = setting.ising if found.proposal.metadata.space == "spin" else setting.theory
            claims.append(contract_claim(name, found.proposal))
            claims.append(certificate_claim(name, found.proposal))
            cycles = QUICK_CYCLES if arguments.quick else CYCLES
            claims.append(observables_claim(name, found.proposal, theory, cycles))
            timed = setting if arguments.quick else SMALLER.get(name, TIMED)
            claims += cost_claims(name, trained(Path(folder), timed)[name]())
            for claim in claims[-5:]:
                print(f"  {claim.name}: {claim.value:.4g} ({claim.spread}); target {claim.target}", flush=True)
    write_claims(claims, arguments.json)
    raise SystemExit(0 if all(claim.holds for claim in claims) else 1)


if __name__ == "__main__":
    main()
