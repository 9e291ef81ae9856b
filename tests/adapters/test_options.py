"""What is said to an adapter, and what a flow says of itself: refused before a run where it has no meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal

from benchmarks.adapter_flows import AffineCoupling, Setting
from flowmc.errors import LatticeMismatchError, ParameterError
from flowmc_adapters import proposal

SHAPE, SIZE = Setting().shape, Setting().size


@pytest.fixture
def coupling() -> AffineCoupling:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return AffineCoupling().double()


class TestWhatIsSaid:
    def test_options_that_are_none(self, coupling: AffineCoupling) -> None:
        from flowjax.distributions import Normal

        for wrong, told in (
            ({"dtyp": "float64"}, "did you mean 'dtype'"),
            ({"full_suport": False}, "did you mean 'full_support'"),
            ({"space": "reel"}, "space"),
            ({"largest_batch": 0}, "largest_batch"),
            ({"log_q_bound": "x"}, "log_q_bound"),
            ({"dtype": "float99"}, "float32"),
        ):
            options: dict[str, Any] = wrong
            for flow, adapter in ((coupling, "torch_module"), (Normal(np.zeros(SIZE)), "flowjax")):
                with pytest.raises(ParameterError, match=told):
                    proposal(flow, event_shape=SHAPE, adapter=adapter, **options)

    def test_shapes_that_are_none(self, coupling: AffineCoupling) -> None:
        for shape in ("42", (4.9, 2), 4, (), (4, 0)):
            with pytest.raises(ParameterError, match="event_shape"):
                proposal(coupling, event_shape=shape, adapter="torch_module")
        # As many sites, but another lattice.
        base = Independent(Normal(torch.zeros(2, 4).double(), 1.0), 2)
        with pytest.raises(LatticeMismatchError, match="2, 4"):
            proposal(base, event_shape=SHAPE, adapter="torch_distributions")

    def test_type_is_the_coarser_one_that_is_drawn_in(self) -> None:
        import jax.numpy as jnp

        base: Any = Normal(torch.zeros(SIZE), 1.0)
        half = (lambda n: (base.sample((n,)), torch.zeros(n).half()), lambda x: base.log_prob(x).sum(1))
        with pytest.raises(ParameterError, match="float16"):
            proposal(half, event_shape=SHAPE, adapter="torch_callables")
        mixed = (lambda n: (base.sample((n,)).double(), torch.zeros(n)), lambda x: base.log_prob(x).sum(1))
        assert proposal(mixed, event_shape=SHAPE, adapter="torch_callables").metadata.dtype == "float32"

        def coarse(kind: str) -> Any:
            functions = (lambda key, n: jnp.zeros((n, SIZE), kind), lambda x: x.sum(1))  # noqa: ARG005
            return proposal(functions, event_shape=SHAPE, adapter="jax_callables").metadata.dtype

        assert coarse("float32") == "float32"
        with pytest.raises(ParameterError, match="float16"):
            coarse("float16")

    def test_functions_that_fail(self) -> None:
        def fails(*_: Any) -> Any:
            raise KeyError("weights")

        for adapter in ("torch_callables", "jax_callables"):
            with pytest.raises(ParameterError, match="KeyError"):
                proposal((fails, fails), event_shape=SHAPE, adapter=adapter)
            with pytest.raises(ParameterError, match="pair of functions"):
                proposal(fails, event_shape=SHAPE, adapter=adapter)
        with pytest.raises(ParameterError, match="torch_callables"):
            proposal(fails, event_shape=SHAPE, adapter="torch_module")

    def test_fields_of_another_shape(self, coupling: AffineCoupling) -> None:
        found = proposal(coupling, event_shape=SHAPE, adapter="torch_module")
        with pytest.raises(LatticeMismatchError):
            found.log_prob(np.zeros((3, 5, 2)))
        assert found.log_prob(np.zeros((0, *SHAPE))).shape == (0,)
        for n in (0, -1, 2.5):
            with pytest.raises(ParameterError, match="draws"):
                found.sample(1, n)  # type: ignore[arg-type]

    def test_too_few_rows(self) -> None:
        base: Any = Normal(torch.zeros(SIZE).double(), 1.0)
        one = (lambda n: (base.sample((1,)), torch.zeros(n).double()), lambda x: base.log_prob(x).sum(1))
        found = proposal(one, event_shape=SHAPE, adapter="torch_callables")
        with pytest.raises(LatticeMismatchError, match="1 events where 5"):
            found.sample(1, 5)

    def test_user_keeps_the_flow_as_it_is(self) -> None:
        module = AffineCoupling()
        torch.nn.utils.parametrizations.weight_norm(module.first[0])
        module(torch.zeros(1, SIZE))
        found = proposal(module, event_shape=SHAPE, adapter="torch_module", dtype="float64")
        assert found.metadata.dtype == "float64"
        assert all(part.requires_grad and part.dtype == torch.float32 for part in module.parameters())
        assert module.training

    def test_not_a_number_of_flowjax(self) -> None:
        from flowjax.distributions import Normal as FlowjaxNormal

        found = proposal(FlowjaxNormal(np.zeros(SIZE)), event_shape=SHAPE)
        field = np.zeros((2, *SHAPE))
        field[1, 0, 0] = np.nan
        log_q = found.log_prob(field)
        assert np.isfinite(log_q[0])
        assert np.isnan(log_q[1])
