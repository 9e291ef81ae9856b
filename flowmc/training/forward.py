"""The forward Kullback-Leibler divergence, on samples of the target.

KL(p ‖ q) = E_p[log p − log q] is the likelihood's loss: with configurations φ_i of the target, for example from HMC,

    L = −E_p[log q] ≈ −(1/n) Σ_i log q(φ_i),

bounded below by the entropy of p, −E_p[log p] = E_p[S] + ln Z, and reached where q = p. It asks nothing of the theory and
only ``log_prob`` of the flow, and punishes a q that misses a mode which the samples have seen, where the reverse
divergence is blind; it knows no more of p than the samples do. Mixed with a weight w,

    L = (1 − w) E_q[log q + S] + w (−E_p[log q]),

each part guards against the weakness of the other.

References
----------
.. [1] Noé, Olsson, Köhler, Wu, arXiv:1812.01729: training by energy and by example.
.. [2] Nicoli et al., arXiv:2302.14082: mode-dropping of flows trained by the reverse divergence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmc.arrays import check_field
from flowmc.errors import ParameterError
from flowmc.flows import Flow
from flowmc.seeds import numpy_generator
from flowmc.theories import Theory
from flowmc.training.losses import check_micro_batch

__all__ = ["FORWARD_KL", "SampleLoss", "Samples", "forward_kl"]

FORWARD_KL = "forward_kl"
"""Name of the objective in run descriptions."""


class SampleLoss(NamedTuple):
    """A micro-batch's contribution to the forward loss."""

    value: Tensor
    """Scalar to differentiate, float64; those of all pieces are to be added, and their sum is the loss."""
    log_q: Tensor
    """log q of the micro-batch, (m,), float64, without gradient."""


def forward_kl(flow: Flow, field: Tensor, micro_batch: int = 0) -> Iterator[SampleLoss]:
    """Yield −(1/n) Σ log q of given fields, in micro-batches.

    Parameters
    ----------
    flow
        The flow; any, discrete ones too.
    field
        Samples of the target, ``(n, *shape)``, of the flow's `field_dtype`.
    micro_batch
        Samples of one piece; 0 is all of them.

    Raises
    ------
    ParameterError
        If the samples cannot be cut into such pieces.
    """
    n = len(field)
    check_micro_batch(n, micro_batch)
    for part in torch.split(field, micro_batch or n):
        yield _likelihood(flow, part, n)


def _likelihood(flow: Flow, field: Tensor, n: int) -> SampleLoss:
    # In a function of its own, so that nothing of a piece's graph outlives the piece.
    log_q = flow.log_prob(field)
    return SampleLoss(-log_q.sum() / n, log_q.detach())


class Samples:
    """Configurations of the target, of which each step takes a batch.

    Parameters
    ----------
    fields
        The configurations, ``(N, *field_shape)``.
    theory
        The target.

    Raises
    ------
    LatticeMismatchError
        If the shape is not that of the theory's fields.
    ParameterError
        If there are none, or some are not fields of the theory.
    """

    def __init__(self, fields: NDArray[Any], theory: Theory) -> None:
        check_field(fields, theory.field_shape, "samples")
        inside = np.asarray(theory.space.contains(fields.reshape(len(fields), prod(theory.field_shape))))
        if not (len(fields) and inside.all()):
            raise ParameterError(
                got=f"{len(fields)} samples, {int(np.count_nonzero(~inside))} of them no {theory.space.name} fields",
                expected=f"at least one sample, all of them fields of the theory {theory.name!r}",
                fix="take the samples from a finished run of this theory",
            )
        self._fields = fields

    @property
    def identity(self) -> dict[str, Any]:
        """What tells these samples from others: their number, and the SHA-256 over all of them in order."""
        plain = np.ascontiguousarray(self._fields)
        digest = hashlib.sha256(f"{plain.dtype.str} {plain.shape}".encode())
        digest.update(plain.data)
        return {"number": len(plain), "sha256": digest.hexdigest()}

    def batch(self, n: int, seed: int, step: int, flow: Flow) -> Tensor:
        """Choose the samples of a step, independently and with equal probability: they depend on these numbers alone.

        Parameters
        ----------
        n
            Number of samples.
        seed, step
            Seed of the training and number of the step.
        flow
            The flow that they are for.

        Returns
        -------
        The samples, ``(n, *shape)``, in the type and on the device of the flow's fields.
        """
        chosen = numpy_generator(seed, "samples", step).integers(len(self._fields), size=n)
        return torch.as_tensor(self._fields[chosen], dtype=flow.field_dtype, device=flow.device)
