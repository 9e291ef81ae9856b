"""The main job: train, certify, sample, make the baselines, analyse, report."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flowmc.arrays import require_x64
from flowmc.config import RunConfig, read_run
from flowmc.display import Display
from flowmc.errors import ConfigError, FlowFileError, RunExistsError
from flowmc.training import TrainingFiles, read_log
from flowmc.workflows.ensembles import check_resumable, sample_ensemble, versions
from flowmc.workflows.flows import train_flow
from flowmc_analysis.comparison import Comparison, compare_analyses
from flowmc_analysis.ensemble import EnsembleAnalysis, analyze
from flowmc_analysis.report import write_report

__all__ = ["RunReport", "run_all"]

# The Γ-method needs a few; so short a run is a test of the plumbing all the same.
FEWEST_CONFIGURATIONS = 5


@dataclass(frozen=True)
class RunReport:
    """How a run ended, and what it found.

    Parameters
    ----------
    stop_reason
        Why it stopped early; empty for a run that finished.
    html
        The report; None before the run is finished.
    analyses
        The ensembles, the main one first.
    comparison
        Their comparison; None without baselines.
    """

    stop_reason: str = ""
    html: Path | None = None
    analyses: tuple[EnsembleAnalysis, ...] = ()
    comparison: Comparison | None = None

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.html is not None

    @property
    def consistent(self) -> bool:
        """Whether the ensembles agree and all monitors are quiet."""
        if self.comparison is not None:
            return self.comparison.passed
        return all(analysis.verdict is None or analysis.verdict.passed for analysis in self.analyses)

    def to_dict(self) -> dict[str, Any]:
        """Return the main ensemble's analysis, with the comparison beside it, as plain data; or why it stopped."""
        if not self.finished:
            return {"finished": False, "stop_reason": self.stop_reason}
        return {
            "finished": True,
            **self.analyses[0].to_dict(),
            "report": str(self.html),
            "consistent": self.consistent,
            "comparison": self.comparison.to_dict() if self.comparison else None,
        }


def run_all(
    config_path: Path, output: Path, *, resume: bool, should_stop: Callable[[], str], display: Display
) -> RunReport:
    """Carry out a run description from training to report.

    Parameters
    ----------
    config_path
        The run description.
    output
        Folder of the results: flow.safetensors, KERNEL.h5 for each ensemble, report.html, analysis.json.
    resume
        Whether to go on with what is in the folder; finished parts are kept, and extended if cycles grew.
    should_stop
        Asked wherever the run can stop; once it has given a reason it must keep to it.
    display
        Where progress is shown.

    Raises
    ------
    RunExistsError
        If the folder holds a run and ``resume`` is off.
    FlowmcError
        As in `train_flow` and `sample_ensemble`.
    """
    require_x64()
    config = read_run(config_path)
    main = config.sampling
    ensembles = {main.kernel: main, **config.baselines()}
    needs_flow = any(settings.needs_flow for settings in ensembles.values())
    if needs_flow and config.flow is None:
        raise ConfigError(
            got="flow proposals without a [flow] section",
            expected="[flow] with its kind",
            fix="add it, or choose kernels that need no flow",
        )
    for kernel, settings in ensembles.items():
        if (stored := settings.cycles // settings.save_every) < FEWEST_CONFIGURATIONS:
            raise ConfigError(
                got=f"{stored} configurations of each {kernel} chain (cycles / save_every)",
                expected=f"at least {FEWEST_CONFIGURATIONS}, or there is nothing to analyse",
                fix="raise `cycles` or lower `save_every`",
            )
        check_resumable(config, settings, output / f"{kernel}.h5", config_path.parent)
    if output.exists() and not resume and any(output.iterdir()):
        raise RunExistsError(
            got=f"{output}, which is not empty",
            expected="a new or empty folder",
            fix="add --resume to go on with it, or choose another --output",
        )
    flow_path = output / "flow.safetensors"
    if needs_flow:
        saved = train_flow(
            config, flow_path, resume=True, should_stop=should_stop, display=display, base=config_path.parent
        )
        if saved is None:
            return RunReport(stop_reason=should_stop())
        display.say(f"flow: {flow_path}, trained in {saved.training['seconds']:.0f} s")
    adapted: dict[str, Any] = {}
    for kernel, settings in ensembles.items():
        result = sample_ensemble(
            config,
            settings,
            output / f"{kernel}.h5",
            flow_path=flow_path if settings.needs_flow else None,
            resume=True,
            should_stop=should_stop,
            display=display,
            base=config_path.parent,
        )
        if not result.finished:
            return RunReport(stop_reason=result.stop_reason)
        adapted[kernel] = dict(result.adaptation)
    return _analyse(config, output, list(ensembles), adapted, display)


def _analyse(
    config: RunConfig, output: Path, kernels: list[str], adapted: dict[str, Any], display: Display
) -> RunReport:
    display.say("analysing")
    analyses = tuple(analyze(output / f"{kernel}.h5", label=kernel) for kernel in kernels)
    comparison = compare_analyses(analyses) if len(analyses) > 1 else None
    history = _training_history(output, display)
    html = write_report(
        output / "report.html",
        analyses,
        comparison,
        training_history=history,
        run_info={"adapted": adapted, "versions": versions(), "sampling": asdict(config.sampling)},
    )
    report = RunReport("", Path(html), analyses, comparison)
    partial = output / "analysis.json.partial"
    partial.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    partial.replace(output / "analysis.json")
    return report


def _training_history(output: Path, display: Display) -> list[dict[str, Any]] | None:
    """Return the lines of the training's log, or None: rather a report without its figure than none."""
    log = TrainingFiles(output / "flow.safetensors").log
    # It may have been removed by hand since the training ended.
    if not log.is_file():
        return None
    try:
        return [asdict(record) for record in read_log(log)]
    except FlowFileError as error:
        display.say(f"the report has no figure of the training: {error.got}")
        return None
