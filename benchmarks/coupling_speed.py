"""How fast a training step and drawing of an affine coupling flow are, against the same flow in normflows and nflows.

``python -m benchmarks.coupling_speed --json docs/results/coupling_speed.json`` measures everything, in ten minutes
of processor time; ``--quick`` is a smoke run of about a minute (one layer, small batch, one lattice). Both need
``pip install -c constraints.txt -e '.[benchmarks]'``. What the peers are is said in `benchmarks.coupling_peers`.

- First of all, the flows must be the same: with equal weights and equal draws, 50 steps of Adam have to give the same
  losses, in float64 and in float32. If they do not, nothing is timed.
- A training step is: draw, log q, action, backward, Adam (with torch's defaults), for the reverse KL divergence. The
  peers' action is differentiated by torch, ours has its force. "Drawing" is a batch with its log q, without gradients.
- Contenders take turns, in one process with one thread, in float32. A ratio is peer/ours in one turn; the value is the
  median over the turns, in processor time of the process, since the machine may be busy with other work as well; the
  spread is from the smallest to the largest turn, with the median by the wall clock beside it.
- Of ours: what torch.compile makes of it, the path gradient and the action differentiated by torch against the plain
  step, and where the time of a step goes. Parts are timed by themselves, forward and backward: the networks, the sum of
  the log-scales, action and force, the optimiser. The rest is the draw, the affine maps themselves, splitting and
  joining, and torch's overhead in one graph.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.claims import Claim, parser, write_claims
from benchmarks.coupling_peers import CASES, Case, Contender, build_flow, conditioners, contenders, reverse_kl_loss
from benchmarks.measuring import INFORMATIVE, Timing, ratio_claim, take_turns
from flowmc.flows import DTYPES, CouplingFlow
from flowmc.seeds import torch_generator
from flowmc.theories import Phi4

TARGET = 1.5
# Largest deviation of the losses, relative to the loss itself.
TOLERANCE = {"float64": 1e-8, "float32": 1e-3}


class Size(NamedTuple):
    """What is measured, and how often."""

    extents: tuple[int, ...]
    compiled: tuple[int, ...]
    """Extents at which torch.compile is tried: it takes a minute each time."""
    compiled_cases: tuple[Case, ...]
    repeat: int
    """Pairs of couplings of the flow."""
    batch: int
    turns: int
    seconds: float
    """Least length of a turn of one contender."""
    steps: int
    """Length of the loss curves."""


FULL = Size((8, 12, 16), (8, 16), (CASES[0], CASES[-1]), 4, 512, 11, 0.12, 50)
QUICK = Size((8,), (8,), CASES[:1], 1, 128, 5, 0.02, 10)


def milliseconds(name: str, timing: Timing) -> Claim:
    """Return a median time."""
    low, high = 1e3 * min(timing.cpu), 1e3 * max(timing.cpu)
    spread = f"{low:.3g} to {high:.3g} over {len(timing.cpu)} turns; wall clock {1e3 * median(timing.wall):.3g}"
    return Claim(name, 1e3 * median(timing.cpu), spread, INFORMATIVE, "ms", holds=True)


def stepper(loss: Callable[[int], Tensor], weights: Sequence[torch.nn.Parameter], batch: int) -> Callable[[], float]:
    """Return a function that makes one step of Adam and returns the loss."""
    optimiser = torch.optim.Adam(weights, lr=1e-3)

    def step() -> float:
        optimiser.zero_grad()
        value = loss(batch)
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return value.item()

    return step


def drawer(sample: Callable[[int], tuple[Tensor, Tensor]], batch: int) -> Callable[[], None]:
    """Return a function that draws a batch with its log q, without gradients."""

    def draw() -> None:
        with torch.inference_mode():
            sample(batch)

    return draw


def loss_curve(contender: Contender, batch: int, steps: int, dtype: str) -> Tensor:
    """Return the losses of some steps with draws that are the same for all contenders."""
    step = stepper(contender.loss, contender.weights, batch)
    generator = torch_generator(1, "curve")
    true_randn, curve = torch.randn, []
    for _ in range(steps):
        latent = true_randn((batch, len(contender.sites)), generator=generator, dtype=torch.float64)
        given = latent[:, contender.sites].to(DTYPES[dtype])

        def drawn(*shape: Any, given: Tensor = given, **_: object) -> Tensor:
            return given.reshape(*shape)

        # All three libraries draw by this function.
        with patch.object(torch, "randn", drawn):
            curve.append(step())
    return torch.tensor(curve, dtype=torch.float64)


def equality_claim(dtype: str, size: Size) -> Claim:
    """Compare the loss curves of all contenders of all architectures."""
    worst, where = 0.0, ""
    for case in CASES:
        reference = None
        for contender in contenders(case, 8, size.repeat, dtype):
            curve = loss_curve(contender, 64, size.steps, dtype)
            reference = curve if reference is None else reference
            deviation = float(((curve - reference).abs() / reference.abs()).max())
            print(
                f"{case.name}, {dtype}, {contender.name}: loss {curve[0]:.6f} to {curve[-1]:.6f}, off by {deviation:.1e}"
            )
            if not deviation <= worst:
                worst, where = deviation, f"{contender.name}, {case.name}"
    holds = worst <= TOLERANCE[dtype]
    name = f"largest relative deviation of the losses in {size.steps} steps, {dtype}"
    return Claim(name, worst, f"L = 8; largest for {where}", f"<= {TOLERANCE[dtype]:g}", "", holds)


def peer_claims(case: Case, extent: int, size: Size) -> list[Claim]:
    """Compare training steps and drawing with the peers'."""
    made = contenders(case, extent, size.repeat, "float32")
    steps = {one.name: stepper(one.loss, one.weights, size.batch) for one in made}
    claims = _compared(f"training step, {case.name}, L = {extent}", take_turns(steps, size.turns, size.seconds))
    frozen = contenders(case, extent, size.repeat, "float32")
    for one in frozen:
        one.module.requires_grad_(False)
    draws = {one.name: drawer(one.sample, size.batch) for one in frozen}
    return claims + _compared(f"drawing, {case.name}, L = {extent}", take_turns(draws, size.turns, size.seconds))


def _compared(what: str, found: Mapping[str, Timing]) -> list[Claim]:
    claims = [milliseconds(f"{what}: ours", found["flowmc"])]
    for name, timing in found.items():
        if name != "flowmc":
            claims.append(ratio_claim(f"{what}: {name} / ours", timing, found["flowmc"], TARGET))
    return claims


def objective_claims(case: Case, extent: int, size: Size) -> list[Claim]:
    """Compare a step of other objectives with that of the reparametrised one."""
    theory = Phi4((extent, extent), m2=-4.0, lam=8.0)
    steps = {}
    for objective in ("reverse_kl", "path_gradient", "reverse_kl_autograd"):
        flow = build_flow(case, theory, size.repeat, "float32")
        weights = [weight for weight in flow.parameters() if weight.requires_grad]
        loss = reverse_kl_loss(flow, theory, torch_generator(1, "draws"), objective)
        steps[objective] = stepper(loss, weights, size.batch)
    found = take_turns(steps, size.turns, size.seconds)
    where = f"{case.name}, L = {extent}"
    return [
        ratio_claim(f"step, {where}: {objective} / reverse_kl", found[objective], found["reverse_kl"])
        for objective in ("path_gradient", "reverse_kl_autograd")
    ]


def call_of(flow: CouplingFlow, theory: Phi4, batch: int) -> Callable[[], object]:
    """Return a step of a flow that is to be trained, and drawing from one that is frozen."""
    generator = torch_generator(1, "draws")
    weights = [weight for weight in flow.parameters() if weight.requires_grad]
    if weights:
        return stepper(reverse_kl_loss(flow, theory, generator), weights, batch)
    return drawer(lambda n: flow.sample(n, generator), batch)


def compile_claims(case: Case, extent: int, size: Size) -> list[Claim]:
    """Measure what torch.compile of the map (base draws to field and log-determinant) costs and gains."""
    claims = []
    for what in ("training step", "drawing"):
        torch._dynamo.reset()
        theory = Phi4((extent, extent), m2=-4.0, lam=8.0)
        flow, compiled = (build_flow(case, theory, size.repeat, "float32") for _ in range(2))
        compiled.forward = torch.compile(compiled.forward)  # type: ignore[method-assign]
        calls: dict[str, Callable[[], object]] = {}
        for name, one in (("plain", flow), ("compiled", compiled)):
            if what == "drawing":
                one.requires_grad_(False)
            calls[name] = call_of(one, theory, size.batch)
        name = f"{what} under torch.compile, {case.name}, L = {extent}"
        began = time.perf_counter()
        try:
            # It may compile anew in the second call, when frozen networks have their matrices.
            with warnings.catch_warnings(), torch._inductor.config.patch(force_disable_caches=True):
                warnings.simplefilter("ignore")
                for _ in range(3):
                    calls["compiled"]()
        except RuntimeError as error:
            claims.append(Claim(f"{name}: failed", 0.0, str(error).splitlines()[0], INFORMATIVE, "", holds=True))
            continue
        seconds = time.perf_counter() - began
        found = take_turns(calls, size.turns, size.seconds)
        saved = median(found["plain"].wall) - median(found["compiled"].wall)
        worth = f"; won back after {seconds / saved:.0f} calls" if saved > 0 else "; never won back"
        claims.append(ratio_claim(f"{name}: plain / compiled", found["plain"], found["compiled"]))
        claims.append(Claim(f"{name}: compilation", seconds, f"once, no cache{worth}", INFORMATIVE, "s", holds=True))
    return claims


def split_claims(case: Case, extent: int, size: Size) -> list[Claim]:
    """Take a training step apart."""
    theory = Phi4((extent, extent), m2=-4.0, lam=8.0)
    flow = build_flow(case, theory, size.repeat, "float32")
    generator = torch_generator(1, "draws")
    weights = [weight for weight in flow.parameters() if weight.requires_grad]
    step = stepper(reverse_kl_loss(flow, theory, generator), weights, size.batch)
    with torch.no_grad():
        field, _ = flow.sample(size.batch, generator)
    half = field.flatten(1)[:, : theory.volume // 2].contiguous().requires_grad_()
    nets = [net for net, _ in conditioners(flow)]
    optimiser = torch.optim.Adam(weights, lr=0.0)

    def networks() -> None:
        for net in nets:
            # The log-determinant adds a gradient of its own to that of the map; here both are one.
            torch.autograd.backward(net(half), [half.detach()] * 2)

    def log_determinant() -> None:
        total = field.new_zeros(len(field), dtype=torch.float64)
        for _ in nets:
            total = total + half.sum(1, dtype=torch.float64)
        total.sum().backward()  # type: ignore[no-untyped-call]

    def action() -> None:
        theory.action_and_force(field)

    def optimise() -> None:
        optimiser.step()

    parts: dict[str, Callable[[], object]] = {
        "networks": networks,
        "log-determinant": log_determinant,
        "action and force": action,
        "optimiser": optimise,
    }
    networks()
    found = take_turns({"step": step, **parts}, size.turns, size.seconds)
    shares = {part: [a / b for a, b in zip(found[part].cpu, found["step"].cpu, strict=True)] for part in parts}
    shares["rest"] = [1 - sum(turn) for turn in zip(*shares.values(), strict=True)]
    return [
        Claim(
            f"share of a step, {case.name}, L = {extent}: {part}",
            100 * median(turns),
            f"{100 * min(turns):.0f} to {100 * max(turns):.0f} over {len(turns)} turns",
            INFORMATIVE,
            "%",
            holds=True,
        )
        for part, turns in shares.items()
    ]


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    size = QUICK if arguments.quick else FULL
    claims = [equality_claim(dtype, size) for dtype in DTYPES]
    if not all(claim.holds for claim in claims):
        write_claims(claims, arguments.json)
        raise SystemExit("the flows differ: there is nothing to compare")
    for extent in size.extents:
        for case in CASES:
            print(f"L = {extent}, {case.name}", flush=True)
            claims += peer_claims(case, extent, size)
            claims += objective_claims(case, extent, size)
            claims += split_claims(case, extent, size)
    for extent in size.compiled:
        for case in size.compiled_cases:
            print(f"torch.compile, L = {extent}, {case.name}", flush=True)
            claims += compile_claims(case, extent, size)
    write_claims(claims, arguments.json)
    raise SystemExit(0 if all(claim.holds for claim in claims) else 1)


if __name__ == "__main__":
    main()
