"""Training of built-in flows: objectives, schedules, checkpoints and the loop."""

from __future__ import annotations

from flowmc.training.checkpoint import TrainingFiles, TrainingRecord
from flowmc.training.objectives import OBJECTIVES, Loss, choose_objective, reinforce, reverse_kl
from flowmc.training.schedules import SCHEDULES
from flowmc.training.trainer import TrainingConfig, TrainingResult, train

__all__ = [
    "OBJECTIVES",
    "SCHEDULES",
    "Loss",
    "TrainingConfig",
    "TrainingFiles",
    "TrainingRecord",
    "TrainingResult",
    "choose_objective",
    "reinforce",
    "reverse_kl",
    "train",
]
