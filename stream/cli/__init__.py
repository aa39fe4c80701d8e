"""The console script: one file per verb, imported only when it is called for.

Beside the verbs: `context` is what each of them shares, `formatting` figures and columns, `screen` how `status` looks
to a person; `turn_output` and `turn_answer` are what verbs that turn share, `end_output` what `cancel` and `finalize`
do; `verify_output` is what `verify` answers, `verify_repair` what its `--repair` does; `exit_paths` decides how a
command line ends, with the exit codes of `schemas.exits`.

Deliberately absent: decisions. A verb reads its options, calls one room, and prints.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from schemas import exits
from stream.cli import exit_paths
from stream.cli.context import invocation


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """Where a verb lives. `file` gives it -c, `changes` --as, `asks` --yes; `turns`: its document is that of a turn."""

    name: str
    module: str
    summary: str  # for the list of verbs: what fits beside the name
    example: str
    file: bool = True
    changes: bool = False
    asks: bool = False
    turns: bool = False


VERBS = (
    Verb(
        name="init",
        module="init",
        summary="Print a first migration.yaml for two databases",
        file=False,
        example='slackwater init --old "$OLD_DSN" --new "$NEW_DSN" > shop.yaml',
    ),
    Verb(
        name="check",
        module="check",
        summary="List everything that would stop this migration",
        example="slackwater -c shop.yaml check",
    ),
    Verb(
        name="plan",
        module="plan",
        summary="Show what will happen, table by table",
        example="slackwater -c shop.yaml plan --ddl",
    ),
    Verb(
        name="grants",
        module="grants",
        summary="Print the least privileges of each role, as SQL",
        example="slackwater -c shop.yaml grants > roles.sql",
    ),
    Verb(
        name="show",
        module="show",
        summary="Show old rows beside the new rows they become",
        example="slackwater -c shop.yaml show customer --key 42",
    ),
    Verb(
        name="trace",
        module="trace",
        summary="Show where a row came from, and what wrote it",
        example="slackwater -c shop.yaml trace customer 42",
    ),
    Verb(
        name="prepare",
        module="prepare",
        summary="Set the migration up; again after an edit",
        example="slackwater -c shop.yaml prepare",
        changes=True,
        asks=True,
    ),
    Verb(
        name="upgrade",
        module="upgrade",
        summary="Bring a running migration to this version",
        example="slackwater -c shop.yaml upgrade --dry-run",
        changes=True,
    ),
    Verb(
        name="run",
        module="run",
        summary="Run every role it needs now, or one of them",
        example="slackwater -c shop.yaml run",
        changes=True,
    ),
    Verb(
        name="status",
        module="status",
        summary="Show where the migration stands",
        example="slackwater -c shop.yaml status --watch",
    ),
    Verb(
        name="gates",
        module="gates",
        summary="Show what must hold before writes may move",
        example="slackwater -c shop.yaml gates",
    ),
    Verb(
        name="verify",
        module="verify",
        summary="Compare every row of both sides; --repair",
        example="slackwater -c shop.yaml verify --table customer",
        changes=True,
        asks=True,
    ),
    Verb(
        name="repaired",
        module="repaired",
        summary="List or restore rows that a repair deleted",
        example="slackwater -c shop.yaml repaired list",
        changes=True,
        asks=True,
    ),
    Verb(
        name="wait",
        module="wait",
        summary="Wait for a phase, a side, or a safe cutover",
        example="slackwater -c shop.yaml wait --for phase=streaming --timeout 3600",
    ),
    Verb(
        name="pause",
        module="pause",
        summary="Hold backfill, verify or apply, and say why",
        example='slackwater -c shop.yaml pause backfill --reason "the nightly report runs"',
        changes=True,
    ),
    Verb(
        name="resume",
        module="pause",
        summary="Let go on what was paused or has halted",
        example="slackwater -c shop.yaml resume backfill",
        changes=True,
    ),
    Verb(
        name="quarantine",
        module="quarantine",
        summary="List, retry or waive rows that were refused",
        example="slackwater -c shop.yaml quarantine list",
        changes=True,
    ),
    Verb(
        name="roundtrip",
        module="roundtrip",
        summary="Prove on the real rows that the way back loses nothing",
        example="slackwater -c shop.yaml roundtrip",
    ),
    Verb(
        name="journal",
        module="journal",
        summary="Show who did what and when; --verify the chain",
        example="slackwater -c shop.yaml journal --verify",
    ),
    Verb(
        name="arm",
        module="arm",
        summary="Build, start and prove the way back",
        example="slackwater -c shop.yaml arm --timeout 600",
        changes=True,
        turns=True,
    ),
    Verb(
        name="cutover",
        module="cutover",
        summary="Move the application's writes to the new side",
        example="slackwater -c shop.yaml cutover --dry-run",
        changes=True,
        asks=True,
        turns=True,
    ),
    Verb(
        name="rollback",
        module="rollback",
        summary="Move the application's writes back to the old side",
        example='slackwater -c shop.yaml rollback --as "checkout is slow on new"',
        changes=True,
        asks=True,
        turns=True,
    ),
    Verb(
        name="failover",
        module="failover",
        summary="Open a side although the other one is dead",
        example="slackwater -c shop.yaml failover --to old --accept-loss --source-isolated",
        changes=True,
        asks=True,
        turns=True,
    ),
    Verb(
        name="route",
        module="route",
        summary="Print who takes the application's writes",
        example="slackwater -c shop.yaml route --wait new --timeout 60",
    ),
    Verb(
        name="foreign-writes",
        module="foreign_writes",
        summary="List, accept or discard writes to a closed side",
        example='slackwater -c shop.yaml foreign-writes discard --reason "a forgotten batch job"',
        changes=True,
        asks=True,
    ),
    Verb(
        name="finalize",
        module="finalize",
        summary="End the migration after a switch",
        example="slackwater -c shop.yaml finalize",
        changes=True,
        asks=True,
    ),
    Verb(
        name="cancel",
        module="cancel",
        summary="End the migration and remove every trace of it",
        example="slackwater -c shop.yaml cancel",
        changes=True,
        asks=True,
    ),
    Verb(
        name="schema",
        module="schema",
        summary="Print the file's JSON Schema, for editors and CI",
        file=False,
        example="slackwater schema > slackwater.schema.json",
    ),
    Verb(
        name="local",
        module="local",
        summary="Embedded PostgreSQL and Kafka: up, down, env",
        file=False,
        example='slackwater local up && eval "$(slackwater local env)"',
    ),
    Verb(
        name="demo",
        module="demo",
        summary="Watch a whole migration under live load",
        file=False,
        example="slackwater demo",
    ),
)

ConfigOption = Annotated[
    Path | None, typer.Option("-c", "--config", help="The migration file; or set SLACKWATER_CONFIG.", metavar="FILE")
]
# Options that verbs get, and the field of the invocation that each sets.
COMMON: dict[str, tuple[str, Any, Any]] = {
    "--config": ("config", ConfigOption, None),
    "--json": ("json", Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")], False),
    "--debug": ("debug", Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")], False),
    "--as": (
        "remark",
        Annotated[str | None, typer.Option("--as", help="A remark beside your identity.", metavar="TEXT")],
        None,
    ),
    "--yes": ("yes", Annotated[bool, typer.Option("--yes", "-y", help="Answer every question with yes.")], False),
}


def _version(asked: bool) -> None:
    if asked:
        from stream.monitoring.metrics import version

        typer.echo(f"slackwater {version()}")
        raise typer.Exit(exits.DONE)


def application(argv: list[str]) -> typer.Typer:
    """The verbs, as one command. When `argv` names a verb, only its module is imported."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        epilog="Start with: slackwater init --help, or see it all at work: slackwater demo",
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def slackwater(
        config: ConfigOption = None,
        version: Annotated[  # noqa: ARG001 typer calls it
            bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
        ] = False,
    ) -> None:
        """Move a live PostgreSQL application from an old schema to a new one, without stopping it."""
        invocation().config = config

    named = _verb(argv)
    present = [v for v in VERBS if importlib.util.find_spec(f"stream.cli.{v.module}") is not None]
    for verb in [named] if named else [] if "--version" in argv else present:
        _register(app, verb)
    return app


def _register(app: typer.Typer, verb: Verb) -> None:
    module = importlib.import_module(f"stream.cli.{verb.module}")
    group = getattr(module, "app", None)
    if isinstance(group, typer.Typer):
        for command in group.registered_commands:
            if command.callback is not None:
                command.callback = _with_common(command.callback, verb)
        app.add_typer(group, name=verb.name, short_help=verb.summary, epilog=f"Example: {verb.example}")
    else:
        function = getattr(module, verb.name.replace("-", "_"))
        app.command(verb.name, short_help=verb.summary, epilog=f"Example: {verb.example}")(_with_common(function, verb))


def _with_common(function: Callable[..., Any], verb: Verb) -> Callable[..., Any]:
    """The verb's function with the common options that it does not declare itself."""
    signature = inspect.signature(function, eval_str=True)
    declared = {
        flag: name
        for name, parameter in signature.parameters.items()
        for option in getattr(parameter.annotation, "__metadata__", ())
        for flag in _flags(option)
    }
    given = {"--config": verb.file, "--json": True, "--debug": True, "--as": verb.changes, "--yes": verb.asks}
    wanted = [flag for flag, has in given.items() if has]
    added = {f"common_{COMMON[flag][0]}": flag for flag in wanted if flag not in declared}

    @functools.wraps(function)
    def run(**values: Any) -> Any:
        for flag, (field, _, default) in COMMON.items():
            name = declared.get(flag) or f"common_{field}"
            value = values.pop(name, default) if name in added else values.get(name, default)
            if value != default:
                setattr(invocation(), field, value)
        try:
            return function(**values)
        except KeyboardInterrupt:  # not left to typer, which would exit with a status of its own
            raise exit_paths.interrupted() from None

    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=COMMON[flag][1], default=COMMON[flag][2])
        for name, flag in added.items()
    ]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()]
    run.__signature__ = signature.replace(parameters=[*parameters, *extra])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in [*parameters, *extra]}
    return run


def _flags(option: object) -> tuple[str, ...]:
    """The spellings of an option; inside Annotated, typer keeps the first of them where the default would be."""
    spellings = (getattr(option, "default", None), *(getattr(option, "param_decls", None) or ()))
    return tuple(s for s in spellings if isinstance(s, str) and s.startswith("-"))


def main(argv: list[str] | None = None) -> None:
    """The console script. Every way out is an exit status of `exits`; a traceback only under --debug."""
    argv = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, where a verb does not see to both
    sys.exit(_run(argv))


def _run(argv: list[str]) -> int:
    def work() -> object:
        command = typer.main.get_command(application(argv))
        return command.main(args=argv or ["--help"], prog_name="slackwater", standalone_mode=False)

    return exit_paths.status(work, argv, _verb(argv))


def _verb(argv: list[str]) -> Verb | None:
    """The verb of a command line: its first word that is no option, and no option's value."""
    words = iter(argv)
    for word in words:
        if word in ("-c", "--config"):  # the only option that stands before a verb and takes a value
            next(words, None)
        elif not word.startswith("-"):
            return next((v for v in VERBS if v.name == word), None)
    return None
