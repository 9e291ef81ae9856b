"""The command line: a thin skin over `flowmc.workflows`.

Results go to standard output (with ``--json`` one JSON object and nothing else), progress and errors to standard error.
Exit status: 0 done (a wall-time limit included), 1 refused, failed or inconsistent, 2 wrong usage, 130 or 143 stopped
by SIGINT or SIGTERM.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import rich.table
import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from flowmc.stopping import Stopper
    from flowmc_analysis.comparison import Comparison
    from flowmc_analysis.ensemble import EnsembleAnalysis
    from flowmc_analysis.tables import Table

__all__ = ["app", "main"]

app = typer.Typer(
    name="flowmc",
    help="Exact Markov-chain Monte Carlo of lattice field theories, with trained flows as proposals.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130


def _show_version(wanted: bool) -> None:
    if wanted:
        from flowmc import __version__

        typer.echo(f"flowmc {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Exact Markov-chain Monte Carlo of lattice field theories, with trained flows as proposals."""


Config = Annotated[Path, typer.Argument(help="Run description (TOML).", metavar="CONFIG")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what exists.")]
ResumeCycles = Annotated[
    bool, typer.Option("--resume", help="Go on with what exists; more cycles extend a finished run.")
]
MaxMinutes = Annotated[float | None, typer.Option("--max-minutes", help="Stop cleanly at this wall-time limit.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]


def _prepare() -> None:
    """Set up the process before torch and JAX are imported."""
    # Two thread pools that spin while they wait starve each other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # An explicit JAX_ENABLE_X64=0 stays as it is, and is refused where it matters.
    os.environ.setdefault("JAX_ENABLE_X64", "1")


@contextmanager
def _errors() -> Iterator[None]:
    """Turn the project's typed errors into a message and exit status 1."""
    from flowmc.errors import FlowmcError
    from flowmc_analysis.errors import AnalysisError
    from flowmc_ensembles.errors import EnsembleError

    try:
        yield
    except (FlowmcError, AnalysisError, EnsembleError) as error:
        console = Console(stderr=True)
        console.print(f"[bold red]error[/] ({type(error).__name__})", highlight=False)
        for label, text in (("got", error.got), ("expected", error.expected), ("fix", error.fix)):
            console.print(f"{label:>9}: {text}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except (MemoryError, RuntimeError) as error:
        if (
            not isinstance(error, MemoryError)
            and "allocate memory" not in str(error)
            and "out of memory" not in str(error)
        ):
            raise
        console = Console(stderr=True)
        console.print(f"error (out of memory): {str(error).splitlines()[0]}", markup=False, soft_wrap=True)
        console.print("fix: a smaller batch_size, flow or lattice, fewer chains or cycles_per_block", markup=False)
        raise typer.Exit(1) from error
    except OSError as error:
        Console(stderr=True).print(f"error ({type(error).__name__}): {error}", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _stop(stopper: Stopper, reason: str, target: Path) -> NoReturn:
    """Say that a command stopped before its end, and exit: 0 at a wall-time limit, the shell's status of a signal."""
    again = f"{reason}: stopped at a committed state of {target}; repeat the command with --resume to go on"
    Console(stderr=True).print(again, markup=False, soft_wrap=True)
    raise typer.Exit(stopper.exit_status)


def _tell(analyses: Iterable[EnsembleAnalysis], comparison: Comparison | None = None) -> None:
    """Say on standard error what a reader of numbers must not miss: verdicts that failed, and all warnings."""
    console = Console(stderr=True)
    if comparison is not None and not comparison.verdict.passed:
        console.print(f"THE ENSEMBLES DISAGREE: {comparison.verdict}", markup=False, highlight=False, soft_wrap=True)
    for analysis in analyses:
        if analysis.verdict is not None and not analysis.verdict.passed:
            found = f"MONITORS OF {analysis.label} FAILED: {analysis.verdict}"
            console.print(found, markup=False, highlight=False, soft_wrap=True)
        for warning in analysis.warnings:
            console.print(f"warning ({analysis.label}): {warning}", markup=False, highlight=False, soft_wrap=True)


def _print_json(data: dict[str, Any]) -> None:
    # Plain print: rich would wrap long lines.
    typer.echo(json.dumps(data, allow_nan=False))


@app.command()
def run(
    config: Config,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder of the results; by default runs/ and the name of CONFIG.")
    ] = None,
    resume: ResumeCycles = False,
    max_minutes: MaxMinutes = None,
    as_json: AsJson = False,
) -> None:
    """Train, certify, sample, make the baselines, analyse and report."""
    with _errors():
        from flowmc.display import TerminalDisplay
        from flowmc.stopping import Stopper
        from flowmc.workflows import run_all

        target = output or Path("runs") / config.stem
        with Stopper(max_minutes) as stopper:
            report = run_all(config, target, resume=resume, should_stop=stopper, display=TerminalDisplay())
        if as_json:
            _print_json(report.to_dict())
        if not report.finished:
            _stop(stopper, report.stop_reason, target)
        if not as_json:
            _print_tables(report.comparison.tables() if report.comparison else _tables(report.analyses[0]))
            typer.echo(f"report: {report.html}")
        _tell(report.analyses, report.comparison)
        if not report.consistent:
            raise typer.Exit(1)


@app.command()
def train(
    config: Config,
    output: Annotated[Path, typer.Option("--output", help="Flow file to write (.safetensors).", metavar="FLOW")],
    resume: Resume = False,
    max_minutes: MaxMinutes = None,
) -> None:
    """Train the flow of a run description."""
    with _errors():
        from flowmc.config import read_run
        from flowmc.display import TerminalDisplay
        from flowmc.stopping import Stopper
        from flowmc.workflows import train_flow

        with Stopper(max_minutes) as stopper:
            saved = train_flow(
                read_run(config),
                output,
                resume=resume,
                should_stop=stopper,
                display=TerminalDisplay(),
                base=config.parent,
            )
            reason = "" if saved else stopper()
        if saved is None:
            _stop(stopper, reason, output)
        else:
            seconds, ess = saved.training["seconds"], saved.training["ess_batch"]
            last = "" if ess is None else f", ESS of the last batch {ess:.2f}"
            typer.echo(f"{output}: fingerprint {saved.fingerprint[:16]}, {seconds:.0f} s{last}")


@app.command("plot-training")
def plot_training(
    sources: Annotated[
        list[Path], typer.Argument(help="Flow files with their logs beside them, or logs.", metavar="FLOW_OR_LOG...")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Figure; by default beside the log, or training.png for several logs."),
    ] = None,
) -> None:
    """Draw the course of trainings, also of one that is going on."""
    with _errors():
        from flowmc.workflows import plot_training as draw_training

        typer.echo(f"figure: {draw_training(sources, output)}")


@app.command()
def certify(
    flow: Annotated[
        Path, typer.Argument(help="Flow file, or FILE.py:NAME of a proposal of another library.", metavar="FLOW")
    ],
    precision: Annotated[str, typer.Option(help="Type in which the networks run: float64 or float32.")] = "float64",
    device: Annotated[str, typer.Option(help="Device of torch on which they run.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    save: Annotated[
        Path | None, typer.Option("--save", help="File for the record, which `sample` takes.", metavar="RECORD.json")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure whether a flow's log q is the log density of what it draws; exit status 1 if not."""
    with _errors():
        from flowmc.proposals import CertificateRecord
        from flowmc.workflows import certify_flow, versions
        from flowmc.workflows.flows import check_writable
        from flowmc.workflows.foreign import is_reference, loaded_versions
        from flowmc_ensembles import LogQAccuracy

        if save:
            check_writable(save)
        certificate = certify_flow(flow, precision=precision, device=device, seed=seed)
        record = CertificateRecord(certificate, {**versions(), **(loaded_versions() if is_reference(flow) else {})})
        if save:
            save.parent.mkdir(parents=True, exist_ok=True)
            record.save(save)
        if as_json:
            _print_json(certificate.to_dict())
        else:
            columns = ("check", "value", "limit", "unit", "passed", "detail")
            rows = [
                (c.name, f"{c.value:.2g}", f"{c.tolerance:.2g}", c.unit, "yes" if c.passed else "NO", c.detail)
                for c in certificate.checks
            ]
            # Of a flow that failed, its own word is not worth repeating.
            accuracy = LogQAccuracy.of_certificate(certificate.to_dict()) if certificate.passed else "refused"
            note = f"{accuracy}; record {record.name[:16]}"
            _print_table(f"certificate of {flow.name}", columns, rows, note)
        certificate.require()


@app.command()
def sample(
    config: Config,
    output: Annotated[Path, typer.Option("--output", help="Ensemble to write.", metavar="ENS.h5")],
    flow: Annotated[
        Path | None,
        typer.Option(
            "--flow", help="Flow file, or FILE.py:NAME of a flow of another library; not needed by HMC.", metavar="FLOW"
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option("--certificate", help="Record of `certify --save`, instead of measuring.", metavar="RECORD.json"),
    ] = None,
    resume: ResumeCycles = False,
    max_minutes: MaxMinutes = None,
) -> None:
    """Make, resume or extend an ensemble with the kernel of the sampling section."""
    with _errors():
        from flowmc.config import read_run
        from flowmc.display import TerminalDisplay
        from flowmc.stopping import Stopper
        from flowmc.workflows import sample_ensemble

        description = read_run(config)
        with Stopper(max_minutes) as stopper:
            result = sample_ensemble(
                description,
                description.sampling,
                output,
                flow_path=flow,
                resume=resume,
                should_stop=stopper,
                display=TerminalDisplay(),
                base=config.parent,
                certificate=certificate,
            )
        if not result.finished:
            _stop(stopper, result.stop_reason, output)
        typer.echo(f"{output}: {result.cycles_done} cycles")


@app.command()
def analyze(
    ensemble: Annotated[Path, typer.Argument(help="Ensemble.", metavar="ENS.h5")], as_json: AsJson = False
) -> None:
    """Estimate observables, autocorrelation times, acceptance, ESS and ln Z of an ensemble."""
    with _errors():
        from flowmc_analysis.ensemble import analyze as analyze_ensemble

        analysis = analyze_ensemble(ensemble)
        if as_json:
            _print_json(analysis.to_dict())
        else:
            _print_tables(_tables(analysis))
        _tell([analysis])


@app.command()
def compare(
    one: Annotated[Path, typer.Argument(help="First ensemble.", metavar="A.h5")],
    other: Annotated[Path, typer.Argument(help="Second ensemble.", metavar="B.h5")],
    as_json: AsJson = False,
) -> None:
    """Compare two ensembles of one theory: observables, monitors and cost; exit status 1 if they disagree."""
    with _errors():
        from flowmc_analysis.comparison import compare as compare_ensembles

        comparison = compare_ensembles(one, other)
        if as_json:
            _print_json(comparison.to_dict())
        else:
            _print_tables(comparison.tables())
        _tell(comparison.analyses, comparison)
        if not comparison.passed:
            raise typer.Exit(1)


@app.command()
def inspect(
    ensemble: Annotated[Path, typer.Argument(help="Ensemble.", metavar="ENS.h5")],
    verify: Annotated[bool, typer.Option("--verify", help="Read every configuration and check its checksum.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what an ensemble holds."""
    with _errors():
        from flowmc_ensembles import CorruptionError, format_summary
        from flowmc_ensembles import inspect as inspect_ensemble

        summary = inspect_ensemble(ensemble, verify=verify)
        if as_json:
            _print_json(summary)
        else:
            typer.echo(format_summary(summary))
        if verify and summary["checksums"] != "ok":
            raise CorruptionError(
                got=f"{ensemble}: {summary['checksums']}",
                expected="configurations that match their stored checksums",
                fix="restore the file from a copy, or make the ensemble again",
            )


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Chain of emcee (HDFBackend), or ensemble.", metavar="SOURCE")],
    target: Annotated[Path, typer.Argument(help="File to write: the other of the two.", metavar="TARGET")],
    theory: Annotated[
        Path | None,
        typer.Option("--theory", help="Run description with the theory that emcee has sampled.", metavar="CONFIG.toml"),
    ] = None,
    discard: Annotated[int, typer.Option("--discard", help="Configurations to leave out at the beginning.")] = 0,
    thin: Annotated[int, typer.Option("--thin", help="Keep every N-th configuration.")] = 1,
    name: Annotated[str, typer.Option("--name", help="Name of emcee's group in its file.")] = "mcmc",
    stream: Annotated[int, typer.Option("--stream", help="Number of the ensemble's stream.")] = 0,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", help="By how many nats log p + S may scatter; for targets in single precision."),
    ] = None,
) -> None:
    """Make an ensemble of a chain of emcee, or the other way round."""
    with _errors():
        from flowmc.config import read_run
        from flowmc.workflows.conversions import convert as convert_file

        described = read_run(theory).theory if theory else None
        done = convert_file(
            source, target, theory=described, discard=discard, thin=thin, name=name, stream=stream, tolerance=tolerance
        )
        what = "an ensemble" if done.kind == "ensemble" else "a chain of emcee"
        typer.echo(f"{target}: {what}, {done.n_chains} chains of {done.n_configurations} configurations")
        if done.steps_left_out:
            note = "emcee left steps out (thin_by): an update is all steps between stored ones, accepted if it moved"
            Console(stderr=True).print(f"warning: {note}", markup=False, soft_wrap=True)


def _tables(analysis: EnsembleAnalysis) -> tuple[Table, ...]:
    from flowmc_analysis.tables import analysis_tables

    return analysis_tables([analysis])


def _print_tables(tables: Iterable[Table]) -> None:
    for table in tables:
        _print_table(table.title, table.columns, table.rows, table.note)


def _print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> None:
    console = Console()
    if not console.is_terminal:
        # A file or a pipe has no width to respect.
        console = Console(width=250)
    cells = [list(row) for row in rows]
    for part in _fitting(columns, cells, console.width):
        shown = rich.table.Table(title=title, title_justify="left", caption=note, caption_justify="left")
        for number in part:
            shown.add_column(columns[number], overflow="fold")
        for row in cells:
            # As plain text: square brackets in a cell are not markup.
            shown.add_row(*(Text(row[number]) for number in part))
        console.print(shown)
        console.print()


def _fitting(columns: Sequence[str], cells: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Split columns into groups that fit a width without breaking a number; each begins with the first column."""
    frame = 3
    wide = [max([len(row[number]) for row in cells] + [len(column)]) + frame for number, column in enumerate(columns)]
    parts, used = [[0]], wide[0] + 1
    for number in range(1, len(columns)):
        if used + wide[number] > width and len(parts[-1]) > 1:
            parts.append([0])
            used = wide[0] + 1
        parts[-1].append(number)
        used += wide[number]
    return parts


def main() -> None:
    """Run the command line."""
    _prepare()
    app()


if __name__ == "__main__":
    main()
