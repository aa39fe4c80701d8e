"""What `cancel` and `finalize` print."""

from __future__ import annotations

from schemas.spec import Spec
from stream.cli import context
from stream.lifecycle.teardown import Outcome


def show(spec: Spec, outcome: Outcome) -> None:
    """What was taken away, and what stays on purpose."""
    told = "was not there: nothing to remove" if outcome.result == "already" else f"is {outcome.result}"
    context.show(
        {
            "migration": spec.migration,
            "result": outcome.result,
            "steps": list(outcome.steps),
            "left": list(outcome.left),
        },
        "\n".join([f"{spec.migration} {told}.", *outcome.left]),
    )
