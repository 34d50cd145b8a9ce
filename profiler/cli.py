"""The command `quant-profiler`: arguments, exit codes, and the only place that prints."""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from profiler import __version__
from profiler.console import StepProgress, make_console, make_log_handler, print_paths, print_summary
from profiler.errors import ConfigError, ProfilerError
from profiler.profile_report import ProfileReport
from profiler.target import describe, load_target, make_from_target

EXIT_OK = 0
EXIT_FINDINGS = 1
EXIT_BAD_INPUT = 2
EXIT_INTERNAL = 3
EXIT_INTERRUPTED = 130

_DESCRIPTION = "Finds where, why and how to fix the accuracy that a PyTorch model loses in integers."
_EPILOG = (
    "exit codes: 0 fine; 1 findings of severity E, with --strict; 2 bad input; 3 an error inside the profiler; "
    "130 interrupted"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The arguments after the program's name; those of the process if None.

    Returns:
        The exit code: see `--help`.
    """
    is_verbose = False
    _accept_any_text()
    try:
        arguments = _build_parser().parse_args(argv)
        is_verbose = arguments.verbose
        _set_up_logging(is_verbose)
        run: Callable[[argparse.Namespace], int] = arguments.run
        return run(arguments)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except ProfilerError as error:
        return _fail(" ".join(str(error).split()), EXIT_BAD_INPUT, is_verbose)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", EXIT_BAD_INPUT, is_verbose)
    except Exception as error:
        hint = "" if is_verbose else "; -v shows where, please report it"
        return _fail(f"internal error: {describe(error)}{hint}", EXIT_INTERNAL, is_verbose)


def _fail(message: str, code: int, is_verbose: bool = False) -> int:
    if is_verbose:
        logging.getLogger("profiler").error("traceback", exc_info=True)
    print(f"quant-profiler: {message}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """Bad arguments are bad input like any other: one line instead of the usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="quant-profiler", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_run(commands)
    _add_render(commands)
    for command in (parser, *commands.choices.values()):
        # on either side of the command; SUPPRESS keeps the inner one from undoing the outer one
        is_outer = command is parser
        command.add_argument(
            "-v",
            "--verbose",
            action="store_true",
            default=False if is_outer else argparse.SUPPRESS,
            help="log what is done; tracebacks of errors",
        )
    return parser


def _add_demo(commands: argparse._SubParsersAction[_Parser]) -> None:
    demo = commands.add_parser("demo", help="profile a sample model", epilog=_EPILOG)
    demo.add_argument(
        "--model",
        default="pitfalls",
        metavar="NAME",
        help="mobilenet_v2, multitask, pitfalls (the default), vit or yolov3",
    )
    _add_output_arguments(demo)
    demo.set_defaults(run=_run_demo)


def _add_run(commands: argparse._SubParsersAction[_Parser]) -> None:
    run = commands.add_parser("run", help="profile a model of your own", epilog=_EPILOG)
    run.add_argument(
        "model",
        metavar="MODULE:FACTORY",
        help="the float model, or a function without arguments that makes it; MODULE may be a path: nets.py:make_model",
    )
    run.add_argument(
        "--data", required=True, metavar="MODULE:FACTORY", help="one batch, batches, or a function that makes them"
    )
    run.add_argument("--evaluate", metavar="MODULE:FUNCTION", help="a function that gives a number for a model")
    run.add_argument("--num-batches", type=_positive, default=32, metavar="N", help="batches to use at most (32)")
    run.add_argument("--march", metavar="MARCH", help="the target to quantize for (BAYES)")
    run.add_argument(
        "--frontend", choices=("auto", "fx", "record"), default="auto",
        help="trace the model, or record its runs; auto traces where that sees the whole model",
    )  # fmt: skip
    run.add_argument("--strict", action="store_true", help="exit code 1 if there is a finding of severity E")
    run.add_argument("--no-zip", action="store_true", help="write no archive")
    _add_output_arguments(run)
    run.set_defaults(run=_run_model)


def _add_render(commands: argparse._SubParsersAction[_Parser]) -> None:
    render = commands.add_parser("render", help="make the page and tables again from a report.json", epilog=_EPILOG)
    render.add_argument("report", type=Path, metavar="REPORT.JSON", help="report.json of an earlier run, or its folder")
    render.add_argument("--no-zip", action="store_true", help="write no archive")
    _add_output_arguments(render, default_text="the folder of report.json")
    render.set_defaults(run=_run_render)


def _add_output_arguments(parser: argparse.ArgumentParser, default_text: str = "./profiler_out") -> None:
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder for page and tables ({default_text})")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
    return value


def _run_demo(arguments: argparse.Namespace) -> int:
    from sample_models import SAMPLES

    if arguments.model not in SAMPLES:
        raise ConfigError(f"no sample model {arguments.model!r}; there are: {', '.join(sorted(SAMPLES))}")
    try:
        with StepProgress(make_console(stderr=True)) as progress:
            progress("load torch and the sample model", 0, 1)
            sample = importlib.import_module(SAMPLES[arguments.model])
            report: ProfileReport = sample.profile(out_dir=arguments.out, progress=progress)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sklearn":
            raise
        raise ConfigError("the demo's images come with scikit-learn: pip install quant-profiler[demo]") from error
    return _finish(report, arguments)


def _run_model(arguments: argparse.Namespace) -> int:
    with StepProgress(make_console(stderr=True)) as progress:
        progress("load model and data", 0, 1)
        model: Any = make_from_target(arguments.model)
        data = make_from_target(arguments.data)
        evaluate = load_target(arguments.evaluate) if arguments.evaluate else None
        if evaluate is not None and not callable(evaluate):
            raise ConfigError(f"{arguments.evaluate}: expected a function, got {type(evaluate).__name__}")
        from profiler.api import model_profiler

        report = model_profiler(
            model,
            data,
            march=arguments.march,
            frontend=arguments.frontend,
            out_dir=arguments.out,
            evaluate=evaluate,
            num_batches=arguments.num_batches,
            make_zip=not arguments.no_zip,
            progress=progress,
        )
    return _finish(report, arguments)


def _run_render(arguments: argparse.Namespace) -> int:
    loaded = ProfileReport.load(arguments.report)
    out_dir = arguments.out or loaded.out_dir or Path()
    report = ProfileReport.write(loaded.data, out_dir, make_zip=not arguments.no_zip)
    console = make_console()
    console.print(report.verdict, markup=False)
    print_paths(console, report)
    if arguments.open:
        report.open()
    return EXIT_OK


def _finish(report: ProfileReport, arguments: argparse.Namespace) -> int:
    print_summary(make_console(), report)
    if arguments.open:
        report.open()
    has_errors = any(finding.severity == "E" for finding in report.findings)
    return EXIT_FINDINGS if has_errors and getattr(arguments, "strict", False) else EXIT_OK


def _accept_any_text() -> None:
    """An op name or advice that the encoding of a pipe cannot hold is shown with `?`; it must not end the run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _set_up_logging(is_verbose: bool) -> None:
    """Warnings and errors of all packages as one line each on stderr; with `-v` all that the profiler does."""
    logging.basicConfig(level=logging.WARNING, handlers=[make_log_handler()], force=True)
    logging.captureWarnings(True)
    logging.getLogger("profiler").setLevel(logging.DEBUG if is_verbose else logging.WARNING)
