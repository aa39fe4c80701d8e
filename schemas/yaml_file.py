"""A YAML document with its line numbers: every value knows where it stands, so every error can say so.

Guards: no key is silently given twice, no variable silently empty; a value from the environment is never read as YAML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from schemas.errors import ConfigError

Path = tuple[str | int, ...]
"""Where a value stands: keys and list positions from the top."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_STRING = "tag:yaml.org,2002:str"
_BOOL = "tag:yaml.org,2002:bool"


class Document:
    """`value` is plain data; `lines` has the line (from 1) of every key and list item by its path.

    `substituted` are the values that came from the environment: any of them may be a secret.
    """

    def __init__(self, value: Any, lines: dict[Path, int], name: str, substituted: frozenset[str]) -> None:
        self.value = value
        self.lines = lines
        self.name = name
        self.substituted = substituted

    def line(self, path: Path) -> int | None:
        """The line of `path`, or of the nearest thing around it that stands in the file."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return None

    def place(self, path: Path) -> str:
        """`migration.yaml line 12`."""
        line = self.line(path)
        return f"{self.name} line {line}" if line else self.name


def read(text: str, *, name: str, env: Mapping[str, str]) -> Document:
    """Parse one document. ConfigError: not YAML, a key given twice, a variable that is not set."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise _not_yaml(error, name) from None  # the parser's own message quotes the line, and a line can hold a secret
    lines: dict[Path, int] = {}
    builder = _Builder(name, env, lines)
    value = builder.build(node, ()) if node is not None else {}
    return Document(value, lines, name, frozenset(builder.substituted))


def _not_yaml(error: yaml.YAMLError, name: str) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    where = f"{name} line {mark.line + 1}" if mark else name
    reason = getattr(error, "problem", None) or "not YAML"
    return ConfigError(f"{where}: {reason}", hint="quote values that hold ': ', '#', '{' or '['; indent with spaces")


class _Builder:
    def __init__(self, name: str, env: Mapping[str, str], lines: dict[Path, int]) -> None:
        self._name = name
        self._env = env
        self._lines = lines
        self._loader = yaml.SafeLoader("")
        self._open: set[int] = set()
        self.substituted: set[str] = set()

    def build(self, node: yaml.Node, path: Path) -> Any:
        line = node.start_mark.line + 1
        self._lines.setdefault(path, line)
        if id(node) in self._open:
            raise ConfigError(f"{self._name} line {line}: an alias that contains itself", hint="write the value out")
        self._open.add(id(node))
        try:
            match node:
                case yaml.MappingNode():
                    return self._mapping(node, path)
                case yaml.SequenceNode():
                    return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
                case _:
                    return self._scalar(node, line)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(
                    f"{self._name} line {line}: a key must be a plain word", hint="see `slackwater schema`"
                )
            key = str(key_node.value)
            if key in built:
                first = self._lines[(*path, key)]
                raise ConfigError(
                    f"{self._name} line {line}: {key!r} is given twice, first on line {first}",
                    hint="keep one of the two",
                )
            self._lines[(*path, key)] = line
            built[key] = self.build(value_node, (*path, key))
        return built

    def _scalar(self, node: yaml.Node, line: int) -> Any:
        text = str(node.value)
        if node.tag == _STRING and "${" in text:
            return _VARIABLE.sub(lambda match: self._variable(match, line), text)
        if node.tag == _BOOL and text.lower() not in ("true", "false"):
            return text  # a column may well be called no, on or off
        try:
            return self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError):
            raise ConfigError(
                f"{self._name} line {line}: a value of this kind cannot be read", hint="quote it"
            ) from None

    def _variable(self, match: re.Match[str], line: int) -> str:
        name, default = match[1], match[2]
        if default is not None and not self._env.get(name):
            return default
        if name not in self._env:
            raise ConfigError(
                f"{self._name} line {line}: the variable {name} is not set",
                hint=f"set {name} in the environment, or give a default: ${{{name}:-default}}",
            )
        self.substituted.add(self._env[name])
        return self._env[name]
