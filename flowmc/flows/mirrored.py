"""A coupling flow and its mirror image under φ → −φ, each with probability one half: two modes from a map of one.

An invertible map of a unimodal base cannot tear it in two, and a density that is equivariant under φ → −φ joins the two
modes of a broken phase by a bridge. The mixture

    q(φ) = ½ [q₁(φ) + q₁(−φ)],  log q = log(e^{log q₁(φ)} + e^{log q₁(−φ)}) − log 2,

is exactly even whatever q₁ is, which is then left with one mode (for symmetric mixtures see arXiv:2107.00734). A draw is
one of q₁ with a random sign. It costs a pass of the inverse map more, and it is no transport: a random sign is no
function of the base draw that could be inverted, so that what needs the map (path gradients) does not apply.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from torch import Tensor

from flowmc.errors import ParameterError
from flowmc.flows.base import Flow
from flowmc.flows.coupling import CouplingConfig, CouplingFlow
from flowmc.theories import FieldSpace, RealSpace, Theory

__all__ = ["MirroredConfig", "MirroredFlow"]


@dataclass(frozen=True)
class MirroredConfig(CouplingConfig):
    """Hyper-parameters of a `MirroredFlow`: those of a `CouplingFlow` without the symmetry.

    Parameters
    ----------
    z2
        False: the mixture has the symmetry, and an equivariant flow is its own mirror image.

    Raises
    ------
    ParameterError
        If ``z2`` is set, or as in `CouplingConfig`.
    """

    z2: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.z2:
            raise ParameterError(
                got="z2 = true in a mirrored flow",
                expected="z2 = false: an equivariant flow is its own mirror image",
                fix='leave `z2` out, or take kind = "coupling"',
            )


class MirroredFlow(Flow):
    """The even mixture of a coupling flow and its mirror image; see the module for the maths.

    Parameters
    ----------
    theory
        The theory of a real field, as for `CouplingFlow`.
    config
        Hyper-parameters.

    Raises
    ------
    ParameterError
        As for `CouplingFlow`.
    """

    kind: ClassVar[str] = "mirrored"
    Config: ClassVar[type] = MirroredConfig
    space: ClassVar[FieldSpace] = RealSpace()
    reparametrised = True
    config: MirroredConfig

    def __init__(self, theory: Theory, config: MirroredConfig) -> None:
        super().__init__(theory, config)
        self.one = CouplingFlow(theory, config)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw fields and log q; see `Flow.sample`."""
        field, log_q = self.one.sample(n, generator)
        sign = 1 - 2 * torch.randint(2, (n, *[1] * len(self.shape)), generator=generator, device=self.device)
        # The density is even: it does not matter at which of the two fields it is taken.
        return sign.to(field.dtype) * field, self._mixed(log_q, self.one.log_prob(-field))

    def log_prob(self, field: Tensor) -> Tensor:
        """Return log q of fields; see `Flow.log_prob`."""
        return self._mixed(self.one.log_prob(field), self.one.log_prob(-field))

    def start_from(self, other: Flow) -> list[str]:
        """Take over weights; see `CouplingFlow.start_from`."""
        given = other.one if isinstance(other, MirroredFlow) else other
        return [f"one.{name}" for name in self.one.start_from(given)]

    @staticmethod
    def _mixed(log_q: Tensor, log_mirrored: Tensor) -> Tensor:
        return torch.logaddexp(log_q, log_mirrored) - log(2)
