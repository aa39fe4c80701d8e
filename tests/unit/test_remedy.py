"""A remedy's command lines are called on the file, its other words stay."""

from __future__ import annotations

import pytest

from schemas.remedy import VERBS, on_file, throughout
from stream.cli import VERBS as EVERY

COMMAND = "slackwater -c 'my shop.yaml'"


def test_every_verb_that_takes_a_file_is_known() -> None:
    assert sorted(VERBS) == sorted(verb.name for verb in EVERY if verb.file)


@pytest.mark.parametrize(
    ("remedy", "expected"),
    [
        ("slackwater check", f"{COMMAND} check"),
        ("`slackwater cancel`, then prepare anew", f"`{COMMAND} cancel`, then prepare anew"),
        ("slackwater run; slackwater status", f"{COMMAND} run; {COMMAND} status"),
        (f"{COMMAND} verify", f"{COMMAND} verify"),
        ("run slackwater as an ordinary user", "run slackwater as an ordinary user"),
        ("`slackwater init` prints a first one", "`slackwater init` prints a first one"),
        ("slackwater local up", "slackwater local up"),
    ],
)
def test_commands_are_called_on_the_file(remedy: str, expected: str) -> None:
    assert on_file(remedy, COMMAND) == expected


def test_throughout_a_document_remedies_alone() -> None:
    error = {"cause": "held by slackwater verify", "remedy": "slackwater status"}
    told = {"cause": "held by slackwater verify", "remedy": f"{COMMAND} status"}
    assert throughout({"errors": [error], "at": None}, COMMAND) == {"errors": [told], "at": None}
