"""The flows of the study of operator flows: which are trained, and how; each is made once and then kept.

``python -m benchmarks.operator_flow_trainings [--quick] [--folder DIR] [NAME ...]`` trains some or all beforehand,
interrupted and resumed at will; `benchmarks.operator_flow` trains those that are missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.kept import KeptFlow, train_kept

__all__ = [
    "CRITICAL",
    "E_LINE",
    "KERNELS",
    "LAM",
    "M2",
    "OBJECTIVES",
    "SEEDS",
    "TARGETS",
    "TRAINED",
    "folder_of",
    "operator_flows",
    "theory",
]

SEEDS = (0, 1, 2)
M2, LAM = -4.0, 6.008
"""Couplings of the set E2 of arXiv:1904.12072, at which the correlation length is two sites."""
CRITICAL = 4.25
"""λ of the critical point at the same m²."""
TRAINED = (6, 8)
"""Extents of the lattices that the flow is trained on."""
TARGETS = (12, 16)
"""Extents of lattices on which training on is compared with training from scratch."""
E_LINE: Mapping[int, float] = MappingProxyType({6: 6.975, 8: 6.008, 10: 5.550, 12: 5.276, 14: 5.113, 20: 4.807})
"""λ by extent where m_p L ≈ 4: arXiv:1904.12072, table I; the last of arXiv:2207.00283."""
KERNELS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "local": {"family": "local", "functions": 6, "reach": 3.0},
        "multiscale": {"family": "multiscale", "functions": 6, "reach": 3.0},
        "spectral": {"family": "spectral", "functions": 6, "cutoff": 3.0},
        "distance": {"family": "distance", "hidden": [32, 32], "reach": 0.0},
    }
)
"""Kernel families; "distance" in the form of arXiv:2401.00828, which does not decay."""
OBJECTIVES: Mapping[str, int] = MappingProxyType({"reverse_kl": 1000, "path_gradient": 250, "continuity": 2500})
"""Objectives and the steps that take them about as long."""
E_LINE_REACH = 0.375
"""Largest width of the kernels along that line, where they scale with the lattice: three sites at L = 8."""


def folder_of(given: Path | None, *, quick: bool) -> Path:
    """Return the folder of flows and ensembles: the given one, or one that a smoke run does not share."""
    return given or Path("runs/operator_flow_quick" if quick else "runs/operator_flow")


def theory(shape: int | tuple[int, ...], lam: float = LAM) -> dict[str, Any]:
    """Return the section of φ⁴ theory on a lattice, L × L for an extent L."""
    extents = [shape, shape] if isinstance(shape, int) else list(shape)
    return {"name": "phi4", "shape": extents, "m2": M2, "lam": lam}


def operator_flows(*, quick: bool) -> dict[str, KeptFlow]:
    """Return the trainings by name, in order."""
    found = {}

    def add(
        name: str,
        target: Mapping[str, Any],
        steps: int,
        *,
        start: str = "",
        flow: Mapping[str, Any] = MappingProxyType({}),
        **training: Any,
    ) -> None:
        settings = {
            "steps": 20 if quick else steps,
            "batch_size": 64,
            "learning_rate": 3e-3,
            "gradient_clip": 5.0,
            "warmup_steps": 5 if quick else 50,
            "log_every": 10,
            "checkpoint_every": 100,
            "threads": 1,
            **training,
        }
        described = {"kind": "operator", "log_q_bound": 2e-3, "networks": {"kernel": KERNELS["local"]}, **flow}
        found[name] = KeptFlow(name, target, described, settings, start_from=start)

    small: dict[str, Any] = {"also": [{"shape": [6, 6]}]}
    for seed in SEEDS:
        add(f"local_{seed}", theory(8), 3000, seed=seed, **small)
    for family in [*KERNELS][1:]:
        add(f"{family}_0", theory(8), 3000, flow={"networks": {"kernel": KERNELS[family]}}, **small)
    for extent, fine, scratch in ((12, 300, 1000), (16, 200, 600)):
        for seed in SEEDS:
            add(f"fine_{extent}_{seed}", theory(extent), fine, start=f"local_{seed}", learning_rate=1e-3, seed=seed)
            add(f"scratch_{extent}_{seed}", theory(extent), scratch, seed=seed)
    kernel = {**KERNELS["multiscale"], "reach": E_LINE_REACH}
    flow = {"networks": {"kernel": kernel}, "spacing": "extent", "conditioning": {"lam": [4.5, 7.0]}}
    along = [{"shape": [extent, extent], "lam": E_LINE[extent]} for extent in (6, 10)]
    add("line", theory(8), 800, flow=flow, also=along)
    critical = {"networks": {"kernel": KERNELS["multiscale"]}}
    add("critical_8", theory(8, CRITICAL), 800, start="multiscale_0", flow=critical, **small)
    add("critical_16", theory(16, CRITICAL), 200, start="critical_8", flow=critical, learning_rate=1e-3)
    for objective, steps in OBJECTIVES.items():
        path = {"residual_times": 8, "trajectory_steps": 10} if objective == "continuity" else {}
        add(f"objective_{objective}", theory(6), steps, flow=path, objective=objective)
    coupling = {"kind": "coupling", "base": "spectral", "base_mass": "matched", "repeat": 6}
    layers = [{"kind": "affine", "hidden": [8], "radius": 4}, {"kind": "sinh_arcsinh"}]
    found["coupling_0"] = KeptFlow(
        "coupling_0",
        theory(8),
        {**coupling, "layers": layers},
        {"steps": 20 if quick else 20000, "batch_size": 512, "learning_rate": 3e-3, "log_every": 20, "threads": 1},
    )
    return found


if __name__ == "__main__":
    train_kept(
        __doc__ or "",
        lambda quick: operator_flows(quick=quick),
        lambda given, quick: folder_of(given, quick=quick),
    )
