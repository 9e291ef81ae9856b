"""Flows and ensembles that benchmarks make once and keep in a folder: interrupted, repeated and extended at will."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from flowmc.config import RunConfig, parse_run
from flowmc.display import TerminalDisplay
from flowmc.flows import SavedFlow
from flowmc.stopping import Stopper
from flowmc.workflows import sample_ensemble, train_flow
from flowmc_analysis.ensemble import EnsembleAnalysis, analyze
from flowmc_ensembles import Ensemble

__all__ = ["KeptEnsemble", "KeptFlow", "train_kept"]

jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class KeptFlow:
    """A training, by the sections of its run description.

    Parameters
    ----------
    name
        Name of its file.
    theory, flow, training
        The sections.
    start_from
        Name of the training whose weights this one takes over.
    """

    name: str
    theory: Mapping[str, Any]
    flow: Mapping[str, Any]
    training: Mapping[str, Any]
    start_from: str = ""

    def config(self) -> RunConfig:
        """Return the run description."""
        training = dict(self.training)
        if self.start_from:
            training["start_from"] = f"{self.start_from}.safetensors"
        return parse_run({"theory": self.theory, "flow": self.flow, "training": training})

    def make(self, folder: Path, known: Mapping[str, KeptFlow]) -> SavedFlow:
        """Train the flow and those that it builds on, or read what is there; another training there is refused."""
        if self.start_from:
            known[self.start_from].make(folder, known)
        path = folder / f"{self.name}.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        with Stopper(None) as stopper:
            saved = train_flow(
                self.config(), path, resume=True, should_stop=stopper, display=TerminalDisplay(), base=folder
            )
        if saved is None:
            raise SystemExit("interrupted; repeat the command to go on")
        return saved


@dataclass(frozen=True)
class KeptEnsemble:
    """An ensemble of a theory, made with a kernel.

    Parameters
    ----------
    training
        The flow, whose theory is sampled whether the kernel needs the flow or not.
    kernel
        The kernel.
    sampling
        The sampling section but for the kernel.
    """

    training: KeptFlow
    kernel: str
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def make(self, folder: Path) -> EnsembleAnalysis:
        """Sample, resume or just read the ensemble, and analyse it."""
        config = parse_run(
            {
                "theory": self.training.theory,
                "flow": self.training.flow,
                "sampling": {**self.sampling, "kernel": self.kernel},
            }
        )
        path = folder / f"{self.training.name}_{self.kernel}.h5"
        if self._finished(path, folder):
            return analyze(path, label=self.kernel)
        flow = folder / f"{self.training.name}.safetensors"
        with Stopper(None) as stopper:
            result = sample_ensemble(
                config,
                config.sampling,
                path,
                flow_path=flow if config.sampling.needs_flow else None,
                resume=True,
                should_stop=stopper,
                display=TerminalDisplay(),
                base=folder,
            )
        if not result.finished:
            raise SystemExit("interrupted; repeat the command to go on")
        return analyze(path, label=self.kernel)

    def _finished(self, path: Path, folder: Path) -> bool:
        """Whether the ensemble is there, of this length and of this flow: to resume it would certify the flow anew."""
        if not path.is_file():
            return False
        ensemble = Ensemble(path)
        stream = ensemble.streams[-1]
        mark = stream.description.flow_sha256
        fresh = not mark or mark == SavedFlow.read(folder / f"{self.training.name}.safetensors").fingerprint
        stored = len(stream.trajectory)
        return bool(stream.attributes.get("finished")) and fresh and stored == self.sampling["cycles"]


def train_kept(
    description: str,
    flows: Callable[[bool], dict[str, KeptFlow]],
    folder_of: Callable[[Path | None, bool], Path],
    *,
    prepare: Callable[[Path, bool], None] = lambda _, __: None,
) -> None:
    """Train flows that the command line names, or all of them.

    Parameters
    ----------
    description
        Help text of the command.
    flows
        Gives the trainings by name, in order; of a smoke run for True.
    folder_of
        Gives the folder for the one that was asked for, if any, and for whether it is a smoke run.
    prepare
        Called with the folder and whether it is a smoke run, before the first training.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a few steps of each")
    parser.add_argument("--folder", type=Path, help="where the flows are kept")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all by default")
    arguments = parser.parse_args()
    folder = folder_of(arguments.folder, arguments.quick)
    prepare(folder, arguments.quick)
    known = flows(arguments.quick)
    for name in arguments.names or known:
        known[name].make(folder, known)
