"""What a turn that was not done tells to run next: a command line, and never prose."""

from __future__ import annotations

import pytest

from stream.cutover.outcome import follows

COMMAND = "slackwater -c deploy/shop.yaml"


@pytest.mark.parametrize(
    ("remedy", "expected"),
    [
        (f"{COMMAND} verify --table customer", f"{COMMAND} verify --table customer"),
        ("slackwater prepare", f"{COMMAND} prepare"),
        ("slackwater rollback --waive lag,canary_age", f"{COMMAND} rollback --waive lag,canary_age"),
        ("slackwater verify, when there is less traffic", f"{COMMAND} status"),
        ("`slackwater cutover` finishes it", f"{COMMAND} status"),
        ("", f"{COMMAND} status"),
    ],
)
def test_a_refusal_is_followed_by_its_remedy_where_that_can_be_run(remedy: str, expected: str) -> None:
    assert follows("refused", remedy, command=COMMAND, again=f"{COMMAND} arm") == expected
    assert follows("aborted", remedy, command=COMMAND, again=f"{COMMAND} arm") == f"{COMMAND} arm"
