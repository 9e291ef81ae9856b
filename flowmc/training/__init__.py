"""Training of built-in flows: objectives, schedules, checkpoints and the loop."""

from __future__ import annotations

from flowmc.training.checkpoint import TrainingFiles, TrainingRecord
from flowmc.training.gradients import GradientStatistics, gradient_statistics, summed_gradient
from flowmc.training.objectives import (
    OBJECTIVES,
    Loss,
    choose_objective,
    path_gradient,
    reinforce,
    reverse_kl,
    reverse_kl_autograd,
)
from flowmc.training.schedules import SCHEDULES
from flowmc.training.trainer import TrainingConfig, TrainingResult, train

__all__ = [
    "OBJECTIVES",
    "SCHEDULES",
    "GradientStatistics",
    "Loss",
    "TrainingConfig",
    "TrainingFiles",
    "TrainingRecord",
    "TrainingResult",
    "choose_objective",
    "gradient_statistics",
    "path_gradient",
    "reinforce",
    "reverse_kl",
    "reverse_kl_autograd",
    "summed_gradient",
    "train",
]
