"""The main job and its parts, as functions: train, certify, sample, analyse, compare, report.

Here the core meets the ensembles and the analysis; the command line is a thin skin over this package. Every function
checks all that it can before it starts anything, and leaves existing files alone unless it resumes them.
"""

from __future__ import annotations

from flowmc.workflows.ensembles import sample_ensemble, versions
from flowmc.workflows.flows import certify_flow, check_theory, train_flow
from flowmc.workflows.run import RunReport, run_all
from flowmc.workflows.training_plots import plot_training

__all__ = [
    "RunReport",
    "certify_flow",
    "check_theory",
    "plot_training",
    "run_all",
    "sample_ensemble",
    "train_flow",
    "versions",
]
