"""Training of built-in flows: objectives, schedules, checkpoints, the log and the loop."""

from __future__ import annotations

from flowmc.training.checkpoint import LOG_SUFFIX, TrainingFiles
from flowmc.training.config import ANNEALING_PATHS, STOP_WINDOW, TrainingConfig
from flowmc.training.continuity import continuity, residual
from flowmc.training.forward import FORWARD_KL, SampleLoss, Samples, forward_kl
from flowmc.training.gradients import GradientStatistics, gradient_statistics, summed_gradient
from flowmc.training.log import TrainingRecord, read_log
from flowmc.training.losses import Loss
from flowmc.training.objectives import (
    OBJECTIVES,
    choose_objective,
    path_gradient,
    reinforce,
    reverse_kl,
    reverse_kl_autograd,
)
from flowmc.training.schedules import SCHEDULES
from flowmc.training.trainer import TrainingResult, train

__all__ = [
    "ANNEALING_PATHS",
    "FORWARD_KL",
    "LOG_SUFFIX",
    "OBJECTIVES",
    "SCHEDULES",
    "STOP_WINDOW",
    "GradientStatistics",
    "Loss",
    "SampleLoss",
    "Samples",
    "TrainingConfig",
    "TrainingFiles",
    "TrainingRecord",
    "TrainingResult",
    "choose_objective",
    "continuity",
    "forward_kl",
    "gradient_statistics",
    "path_gradient",
    "read_log",
    "reinforce",
    "residual",
    "reverse_kl",
    "reverse_kl_autograd",
    "summed_gradient",
    "train",
]
