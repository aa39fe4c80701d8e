"""`slackwater demo`: the whole story under live load, on an embedded PostgreSQL and Kafka."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Annotated

import typer

from schemas.errors import SlackwaterError


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
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    stage = Stage()
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
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave servers behind
        if not kept:
            stage.say("Stopping what was started.")
            stage.close()


def _interrupted(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 the signature of a handler
    raise KeyboardInterrupt
