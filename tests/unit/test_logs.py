"""No secret in a log line, whatever library wrote it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from connectors.postgres.session import secrets
from stream.monitoring import logs


@pytest.fixture
def line() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield io.StringIO()
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.parametrize(
    "text",
    [
        "connecting to postgresql://app:hunter2!@db:5432/shop failed",
        "options: host=db password=hunter2! user=app",
        "options: password='hunter2! too' user=app",
        "sasl.password=hunter2!,sasl.username=app",
        "the broker said hunter2! to us",
    ],
)
@pytest.mark.parametrize("style", ["text", "json"])
def test_secrets_never_appear(line: io.StringIO, text: str, style: str) -> None:
    logs.configure(style=style, secrets=secrets("host=db password=hunter2!"), out=line, role="apply")
    logging.getLogger("elsewhere").error("%s", text)
    try:
        raise ValueError(text)
    except ValueError:
        logging.getLogger("elsewhere").exception("failed")
    written = line.getvalue()
    assert "hunter2" not in written
    assert "***" in written


def test_json_lines(line: io.StringIO) -> None:
    logs.configure(style="json", out=line, role="capture")
    logging.getLogger("slackwater.capture").warning("epoch %d", 7)
    document = json.loads(line.getvalue())
    assert document["message"] == "epoch 7"
    assert document["role"] == "capture"
    assert document["level"] == "warning"
    assert document["at"].endswith("Z")


def test_a_text_line_tells_the_roles_apart(line: io.StringIO) -> None:
    logs.configure(out=line, role="capture", level="warning")
    logging.getLogger("slackwater.capture").info("not this")
    logging.getLogger("slackwater.capture").warning("this")
    assert line.getvalue().split()[1:] == ["warning", "capture", "this"]
