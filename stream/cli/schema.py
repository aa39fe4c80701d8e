"""`slackwater schema`: the migration file's JSON Schema."""

from __future__ import annotations

from stream.cli import context


def schema() -> None:
    """Print the JSON Schema of the migration file, for editors and CI."""
    from schemas.spec import json_schema

    document = json_schema()
    context.show(document, lambda: context.document(document))
