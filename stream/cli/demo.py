"""`slackwater demo`: the whole story under live load, on an embedded PostgreSQL and Kafka."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from schemas.errors import SlackwaterError
from stream.cli import context


def demo(
    full: Annotated[
        bool, typer.Option("--full", help="Five times the rows, more roles killed, a second cutover, and the end.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running at the end, to play with.")] = False,
) -> None:
    """Move a small shop to a new schema while its customers keep buying, and prove the copy right.

    Needs nothing but this machine, and changes nothing outside a temporary folder. Takes about three minutes once Kafka
    has been downloaded.
    """
    try:
        from stream.demo.stage import Stage
        from stream.demo.story import Story
        from stream.demo.tide import Tide
    except ModuleNotFoundError as error:
        raise SlackwaterError(
            f"the demo needs the Python package {error.name}, which is not installed",
            hint="pip install 'slackwater[embedded]'",
        ) from error
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    stage = Stage(sys.stderr if context.invocation().json else sys.stdout)
    story = Story(stage, scale=5, victims=("apply", "capture", "backfill")) if full else Story(stage)
    kept = False
    try:
        story.play()
        Tide(stage, roles=story.roles if full else None).play()
        stage.say(f"\nDone, after {stage.elapsed_s:.0f} s.")
        kept = keep
        if keep:
            story.invite()
            stage.keep()
    except SlackwaterError:
        stage.last_words()
        raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a second Ctrl-C must not leave servers behind
            signal.signal(number, signal.SIG_IGN)
        if not kept:
            stage.say("Stopping what was started.")
            stage.close()
    if context.invocation().json:
        told = {"result": "done", "seconds": round(stage.elapsed_s, 1), "kept": str(stage.folder) if kept else None}
        context.show(told, "")
