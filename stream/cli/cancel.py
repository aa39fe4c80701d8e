"""`slackwater cancel`: the end, before the first switch."""

from __future__ import annotations

from typing import Annotated

import typer

from stream.cli import context, end_output
from stream.lifecycle import cancel as cancelling


def cancel(
    keep_topics: Annotated[bool, typer.Option("--keep-topics", help="Leave the Kafka topics as they are.")] = False,
) -> None:
    """End the migration before its first switch, and remove every trace of it; your tables stay as they are."""
    spec = context.spec()
    outcome = cancelling.cancel(spec, say=context.note, confirm=context.confirm, keep_topics=keep_topics)
    end_output.show(spec, outcome)
