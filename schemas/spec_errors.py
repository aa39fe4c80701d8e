"""What is wrong with a configuration file, in words with lines: never with the values, which can be secrets."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from schemas.errors import ConfigError
from schemas.yaml_file import Document, Path


def explain(error: ValidationError, document: Document, model: type[BaseModel]) -> ConfigError:
    """One ConfigError for all of pydantic's complaints, in the order of the file."""
    found = []
    for item in error.errors(include_input=False, include_url=False):
        path = tuple(part for part in item["loc"])
        line = document.line(path)
        found.append((line or 0, f"{document.place(path)}: {_message(item['type'], item['msg'], path, model)}"))
    lines = [text for _, text in sorted(dict.fromkeys(found))]
    hint = "`slackwater schema` prints every key and what it takes"
    if len(lines) == 1:
        return ConfigError(lines[0], hint=hint)
    return ConfigError(
        f"{len(lines)} mistakes in {document.name}:\n" + "\n".join(f"- {text}" for text in lines), hint=hint
    )


def _message(kind: str, message: str, path: Path, model: type[BaseModel]) -> str:
    name = ".".join(str(p) for p in path)
    if kind == "extra_forbidden":
        known = _keys(model, path[:-1])
        near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
        return f"unknown key {name!r}" + (
            f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(known)}"
        )
    if kind == "missing":
        return f"{name} is missing"
    if kind == "string_pattern_mismatch" and name == "migration":
        return "migration: a name is a lower-case letter, then lower-case letters, digits and _, 31 at most"
    return f"{name}: {message.removeprefix('Value error, ')}"


def _keys(model: type[BaseModel], path: Path) -> list[str]:
    """The keys known at `path`."""
    current: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, int) or current is None:
            continue
        fields = {f.alias or n: f for n, f in current.model_fields.items()}
        current = next(_models(fields[part].annotation), None) if part in fields else None
    return sorted(f.alias or n for n, f in current.model_fields.items()) if current else []


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)
