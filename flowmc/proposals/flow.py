"""A built-in torch flow as a proposal: batches on the host, draws numbered by seed, log q in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowmc.errors import ParameterError
from flowmc.flows import Flow, HierarchicalFlow, TransportFlow, fingerprint
from flowmc.proposals.base import ProposalMetadata
from flowmc.seeds import torch_generator

__all__ = ["BlockFlowProposal", "FlowProposal", "TransportFlowProposal", "as_proposal"]


class FlowProposal:
    """Wrap a flow for production: evaluation mode, no gradients, NumPy in and out.

    Parameters
    ----------
    flow
        A trained flow; it is put into evaluation mode and its weights must not change any more.
    """

    def __init__(self, flow: Flow) -> None:
        self._flow = flow.eval().requires_grad_(False)
        self._metadata = ProposalMetadata(
            event_shape=flow.shape,
            dtype=str(flow.dtype).removeprefix("torch."),
            deterministic=True,
            exact=flow.exact,
            fingerprint=fingerprint(flow),
            space=flow.space.name,
            log_q_bound=flow.log_q_bound,
        )

    @property
    def metadata(self) -> ProposalMetadata:
        """What the flow says of itself."""
        return self._metadata

    def sample(self, seed: int, n: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Draw ``n`` fields and log q; see `Proposal.sample`."""
        if n < 1:
            raise ParameterError(got=f"n = {n} draws", expected="at least one", fix="ask for a positive number")
        fields, log_qs = [], []
        with torch.inference_mode():
            # One generator for the call, and chunks of the flow's size: the draws depend on (seed, n) alone.
            generator = torch_generator(seed, device=self._flow.device)
            for start in range(0, n, self._flow.largest_batch):
                field, log_q = self._flow.sample(min(self._flow.largest_batch, n - start), generator)
                fields.append(field.cpu().numpy())
                log_qs.append(log_q.cpu().numpy())
        return np.concatenate(fields), np.concatenate(log_qs)

    def log_prob(self, field: NDArray[Any]) -> NDArray[np.float64]:
        """Return log q of fields; see `Proposal.log_prob`."""
        size = self._flow.largest_batch
        with torch.inference_mode():
            parts = [
                self._flow.log_prob(self._tensor(field[start : start + size])).cpu().numpy()
                for start in range(0, len(field), size)
            ]
        return np.concatenate(parts)

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        # A copy: the array may be a read-only view of another library's buffer.
        return torch.tensor(np.asarray(array), dtype=self._flow.field_dtype, device=self._flow.device)


class TransportFlowProposal(FlowProposal):
    """A transport flow as a proposal: it can also show its map and the Jacobian of the map."""

    _flow: TransportFlow

    def __init__(self, flow: TransportFlow) -> None:
        super().__init__(flow)

    def base_sample(self, seed: int, n: int) -> NDArray[np.floating[Any]]:
        """Draw ``n`` points of the base density."""
        with torch.inference_mode():
            draws: NDArray[np.floating[Any]] = (
                self._flow.base.draw(n, torch_generator(seed, device=self._flow.device)).cpu().numpy()
            )
        return draws

    def forward(self, latent: NDArray[np.floating[Any]]) -> tuple[NDArray[np.floating[Any]], NDArray[np.float64]]:
        """Map base points to fields, with log|det ∂φ/∂z|."""
        with torch.inference_mode():
            field, log_det = self._flow.forward(self._tensor(latent))
        return field.cpu().numpy(), log_det.cpu().numpy()

    def jacobian(self, latent: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """Return ∂φ/∂z at one base point, (V, V)."""
        size = latent.size

        def flat(point: torch.Tensor) -> torch.Tensor:
            return self._flow.forward(point.reshape(1, *self._flow.shape))[0].reshape(size)

        with torch.enable_grad():
            matrix = torch.autograd.functional.jacobian(flat, self._tensor(latent).reshape(size), vectorize=True)  # type: ignore[no-untyped-call]
        result: NDArray[np.floating[Any]] = matrix.cpu().numpy()
        return result


class BlockFlowProposal(FlowProposal):
    """A hierarchical flow as a proposal: it can also draw the insides of blocks anew."""

    _flow: HierarchicalFlow

    def __init__(self, flow: HierarchicalFlow) -> None:
        super().__init__(flow)

    @property
    def block_sides(self) -> tuple[int, ...]:
        """Sides of the blocks, from large to small."""
        return self._flow.block_sides

    def resample_blocks(
        self, field: NDArray[np.int8], side: int, seed: int
    ) -> tuple[NDArray[np.int8], NDArray[np.float64], NDArray[np.float64]]:
        """Draw the inside of every block anew; see `BlockProposal.resample_blocks`."""
        with torch.inference_mode():
            generator = torch_generator(seed, device=self._flow.device)
            new, log_new, log_old = self._flow.resample_blocks(self._tensor(field), side, generator)
        return new.cpu().numpy(), log_new.cpu().numpy(), log_old.cpu().numpy()


def as_proposal(flow: Flow) -> FlowProposal:
    """Wrap a built-in flow as the proposal with all the capabilities that it has."""
    if isinstance(flow, TransportFlow):
        return TransportFlowProposal(flow)
    return BlockFlowProposal(flow) if isinstance(flow, HierarchicalFlow) else FlowProposal(flow)
