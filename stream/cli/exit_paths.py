"""The ways out of a command line: what a person is told, what a script is given, and with which exit status.

Invariant: each ends in a status of `exits`; under --json in one document on stdout, whatever happened.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from schemas import exits
from schemas.errors import Aborted, Refused, SlackwaterError
from stream.cli.context import document, invocation, on_file

if TYPE_CHECKING:
    from stream.cli import Verb

# The root of what the command line's own library calls a wrong command line; its public name differs by version.
USAGE_ERROR: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def status(work: Callable[[], object], argv: list[str], verb: Verb | None) -> int:
    """The exit status of `work`, which carries out `argv`; an error is told first. `verb`: the one that is named."""
    try:
        answer = work()
    except SlackwaterError as error:
        _explain(error, argv, verb)
        return error.exit_code
    except USAGE_ERROR as error:
        message = str(getattr(error, "message", error))
        if message.startswith("Usage:"):  # a group without its verb: this is its help
            typer.echo(message, err=True)
        else:
            called = f"slackwater {verb.name}" if verb else "slackwater"
            _explain(SlackwaterError(_said(error), hint=f"{called} --help"), argv, verb)
        return exits.USAGE
    except (KeyboardInterrupt, typer.Abort):
        _explain(interrupted(), argv, verb)
        return exits.ABORTED
    except BrokenPipeError:
        return exits.FAILED
    except Exception as error:  # noqa: BLE001 the last resort: nobody is shown a traceback who did not ask for it
        if invocation().debug or "--debug" in argv:
            traceback.print_exc()
        cause = f"{type(error).__name__}: {error}"
        hint = "this is a defect of slackwater; --debug shows where it happened"
        _explain(SlackwaterError(cause, hint=hint), argv, verb)
        return exits.FAILED
    return answer if isinstance(answer, int) else exits.DONE


def interrupted() -> Aborted:
    """What Ctrl-C and SIGTERM come to, where the verb has no better word for it."""
    return Aborted("interrupted", hint="nothing is lost by it: run it again, and it goes on from where it stands")


def _said(error: Exception) -> str:
    format_message: Callable[[], str] = getattr(error, "format_message", error.__str__)
    return format_message()


def _explain(error: SlackwaterError, argv: list[str], verb: Verb | None) -> None:
    from stream.monitoring.logs import Redaction

    redact = Redaction()
    reasons = error.reasons if isinstance(error, Refused | Aborted) else ()
    lines = [f"slackwater: {error.cause}", *(f"  - {reason}" for reason in reasons)]
    remedy = on_file(error.hint)
    if remedy:
        lines.append(f"  remedy: {remedy}")
    typer.echo(redact("\n".join(lines)), err=True)
    if invocation().debug:
        traceback.print_exception(error)
    if not (invocation().json or "--json" in argv):
        return
    if verb is not None and verb.turns:
        from stream.cli.turn_answer import failed

        typer.echo(document(failed(error)))
    else:
        told = {"cause": redact(error.cause), "remedy": redact(remedy), "reasons": [redact(r) for r in reasons]}
        typer.echo(document({"error": told}))
