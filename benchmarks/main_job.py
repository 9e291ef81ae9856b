"""The main job, repeated with other seeds: wall time, ESS, agreement of the kernels, and the published observables.

Run from the checkout: ``python -m benchmarks.main_job [--quick] [--json PATH]``. Reference values at L = 8, m² = −4,
λ = 8: the tutorial of arXiv:2101.08176 quotes a susceptibility of 0.75(1) from its HMC; the sharper values below were
computed for this project with another HMC code, checked by thermodynamic integration and by Σ φ ∂S/∂φ = V.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from math import hypot
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.claims import Claim, parser, write_claims

EXAMPLE = Path(__file__).parents[1] / "examples" / "phi4_8x8.toml"
# Observable: value, error.
REFERENCE = {
    "susceptibility": (0.7426, 0.0010),
    "phi_squared": (0.14343, 0.00002),
    "action_density": (0.16156, 0.00009),
    "magnetisation_abs": (0.08691, 0.00006),
    "correlation_length": (1.229, 0.002),
}
LN_Z = (9.285, 0.007)
KERNELS = ("hybrid", "flow", "hmc")


def run_job(seed: int, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Run the job with this seed; return its JSON, with the wall time of the whole process."""
    text = EXAMPLE.read_text().replace("seed = 1\n", f"seed = {seed}\n").replace("seed = 2026 ", f"seed = {seed} ")
    text = text.replace("seed = 2026\n", f"seed = {seed}\n")
    if quick:
        text = text.replace("steps = 2000", "steps = 200").replace("cycles = 1500", "cycles = 300")
    config = folder / f"seed_{seed}.toml"
    config.write_text(text)
    began = time.perf_counter()
    command = [sys.executable, "-m", "flowmc.cli", "run", str(config), "--output", str(folder / str(seed)), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {**json.loads(done.stdout), "seconds": time.perf_counter() - began}


def spread(values: list[float]) -> str:
    """Return the range of repetitions."""
    return f"{min(values):.4g} to {max(values):.4g} over {len(values)} seeds"


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "").parse_args()
    seeds = [11] if arguments.quick else [11, 12, 13]
    with tempfile.TemporaryDirectory() as folder:
        jobs = [run_job(seed, Path(folder), quick=arguments.quick) for seed in seeds]
    minutes = [job["seconds"] / 60 for job in jobs]
    ess = [job["ess_reverse"] for job in jobs]
    p_values = [job["comparison"]["verdict"]["p_value"] for job in jobs]
    claims = [
        Claim("wall time of the main job", median(minutes), spread(minutes), "<= 8", "min", max(minutes) <= 8),
        Claim("reverse ESS", median(ess), spread(ess), ">= 0.6", "", min(ess) >= 0.6),
        Claim(
            "family p of the kernels' agreement", min(p_values), spread(p_values), ">= 1e-3", "", min(p_values) >= 1e-3
        ),
    ]
    worst: dict[str, float] = {}
    for job in jobs:
        for kernel in KERNELS:
            for name, (value, error) in REFERENCE.items():
                found = job["comparison"]["ensembles"][kernel]["observables"][name]
                z = (found["value"] - value) / hypot(found["error"], error)
                worst[name] = max(worst.get(name, 0.0), z, -z)
        z = (job["ln_z"]["value"] - LN_Z[0]) / hypot(job["ln_z"]["error"], LN_Z[1])
        worst["ln Z"] = max(worst.get("ln Z", 0.0), z, -z)
    # Šidák at 1e-3 for all of these comparisons together lies just above 4.
    claims += [
        Claim(f"largest |z| of {name} against its reference", z, "all kernels and seeds", "< 4", "", z < 4)
        for name, z in worst.items()
    ]
    write_claims(claims, arguments.json)
    raise SystemExit(0 if all(claim.holds for claim in claims) else 1)


if __name__ == "__main__":
    main()
