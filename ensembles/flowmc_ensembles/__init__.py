"""Ensembles of field configurations in HDF5: written block by block, resumed after any interruption, read by any tool.

>>> import pathlib, tempfile
>>> import numpy as np
>>> folder = tempfile.TemporaryDirectory()
>>> path = pathlib.Path(folder.name) / "phi4.h5"
>>> description = EnsembleDescription("phi4", {"name": "phi4", "m2": -4.0, "lam": 8.0}, (4, 4), "arXiv:1904.12072")
>>> stream = StreamDescription(seed=1, algorithm="hmc", algorithm_parameters={}, n_chains=2)
>>> with EnsembleWriter.create(path, description, stream) as writer:
...     writer.append(
...         trajectory=np.array([10]),
...         configurations={"phi": np.zeros((1, 2, 4, 4)), "action": np.zeros((1, 2))},
...         history={"update": np.array([10]), "accepted": np.ones((1, 2), dtype=np.uint8)},
...         observables={},
...         checkpoint={"block": 1},
...     )
>>> Ensemble(path).streams[0].configurations().shape
(1, 2, 4, 4)
>>> folder.cleanup()
"""

from __future__ import annotations

from flowmc_ensembles.descriptions import EnsembleDescription, StreamDescription
from flowmc_ensembles.errors import (
    AppendError,
    CorruptionError,
    DescriptionError,
    EnsembleError,
    ExistsError,
    LockedError,
    MissingError,
    NotAnEnsembleError,
    TruncatedError,
    VersionError,
)
from flowmc_ensembles.log_q import LogQAccuracy
from flowmc_ensembles.reader import Ensemble, Stream
from flowmc_ensembles.summary import format_summary, inspect
from flowmc_ensembles.writer import EnsembleWriter

__all__ = [
    "AppendError",
    "CorruptionError",
    "DescriptionError",
    "Ensemble",
    "EnsembleDescription",
    "EnsembleError",
    "EnsembleWriter",
    "ExistsError",
    "LockedError",
    "LogQAccuracy",
    "MissingError",
    "NotAnEnsembleError",
    "Stream",
    "StreamDescription",
    "TruncatedError",
    "VersionError",
    "format_summary",
    "inspect",
]
