"""The one file that is a migration, as written and checked. Names here are the outer contract: add, never rename.

Guards: nothing unknown is passed over (a misspelt key is an error with its line), and no secret is ever shown.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from schemas import spec_errors, yaml_file
from schemas.control import MIRROR_SCHEMA, SCHEMA
from schemas.errors import ConfigError
from schemas.gates import Gates
from schemas.values import Dsn, Options, Window, parse_size

__all__ = ["Dsn", "Spec", "TableEntry", "Window", "json_schema", "load_spec", "parse_spec"]

Bytes = Annotated[int, BeforeValidator(parse_size, json_schema_input_type=int | str), Field(gt=0)]
Name = Annotated[str, Field(min_length=1, max_length=63)]
Rate = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0)]


_NOT_ON_A_PATH = frozenset({"information_schema", SCHEMA, MIRROR_SCHEMA})


class Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, validate_by_name=True, validate_by_alias=True
    )


class Old(Part):
    """The legacy side."""

    dsn: Dsn = Field(repr=False)
    schema_: Name = Field(default="public", alias="schema")
    search_path: list[Name] | None = Field(
        default=None,
        description="schemas in which the side's own functions find what they name without one; null: `schema`",
    )

    @field_validator("search_path", mode="before")
    @classmethod
    def _schemas(cls, value: Any) -> Any:
        """A list, so that nobody has to know how libpq quotes."""
        if isinstance(value, str):
            raise ValueError(f"write a list of schemas: [{value}]")
        for name in value if isinstance(value, list) else ():
            if name == "$user":
                raise ValueError('"$user" is another schema for each role: write the name of the application\'s own')
            if isinstance(name, str) and (name.startswith("pg_") or name in _NOT_ON_A_PATH):
                raise ValueError(f"{name} cannot stand in it: PostgreSQL's own names come first by themselves")
        return value


class New(Old):
    """The side that replaces it. `ddl` is a file, read relative to this one; `ddl_text` is what it says."""

    ddl: str | None = None
    _ddl_text: str | None = PrivateAttr(None)

    @property
    def ddl_text(self) -> str | None:
        return self._ddl_text


class RegistryPart(Part):
    url: str | None = None
    options: Options = Field(default_factory=Options)


class Kafka(Part):
    bootstrap: str = Field(min_length=1)
    topic_prefix: str = Field(default="slackwater", pattern=r"^[a-zA-Z0-9._-]{1,100}$")
    partitions: int = Field(default=4, ge=1)
    replication_factor: int | None = Field(default=None, ge=1, description="null: the broker's default")
    retention_s: int | None = Field(default=None, gt=0, description="null: unlimited until finalize")
    registry: RegistryPart = Field(default_factory=RegistryPart)
    options: Options = Field(default_factory=Options, description="handed to librdkafka as they are")


class Http(Part):
    listen: str = Field(default="127.0.0.1:0", pattern=r"^(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*):\d{1,5}$")


class Log(Part):
    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


class EpochPart(Part):
    max_ms: int = Field(default=100, gt=0)
    max_rows: int = Field(default=20_000, gt=0)


class Backfill(Part):
    workers: int = Field(default=2, ge=1)
    chunk_bytes: Bytes = 16 << 20
    max_lag_s: Seconds = 30.0
    max_rows_per_s: Rate | None = None
    window: Window | None = None
    read_from: Dsn | None = Field(default=None, repr=False)
    after: list[str] = Field(
        default_factory=list,
        description="statements for the new side when the backfill is done: indexes, values that no mapping writes",
    )


class Verify(Part):
    workers: int = Field(default=2, ge=1)
    max_age_s: Seconds = 86_400.0
    max_rows_per_s: Rate | None = None
    window: Window | None = None
    read_from: Dsn | None = Field(default=None, repr=False)


class Cutover(Part):
    max_pause_s: float = Field(default=5.0, gt=0)
    max_lag_s: Seconds = 5.0
    attempts: int = Field(default=10, ge=1)
    window: Window | None = None
    gates: Gates = Field(default_factory=Gates, description="thresholds of single gates; false switches one off")


class Finalize(Part):
    quiet_s: float = Field(default=60.0, ge=0, description="how long nobody may have used the closed side's tables")


class Roundtrip(Part):
    accept: list[str] = Field(
        default_factory=list,
        description="losses that were read and accepted, as `roundtrip` and `plan` name them: a column of old"
        " (customers.fax), a table of old (audit), one of new that nothing on old is fed by (new.sales), rows that new"
        " can hold and old would never hear of (new.address:alone, new.item.price:digits)",
    )


class Quarantine(Part):
    limit: int = Field(default=100, ge=0)


class Hooks(Part):
    before_cutover: str | None = None
    after_cutover: str | None = None
    before_rollback: str | None = None
    after_rollback: str | None = None
    on_change: str | None = None


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _literal(value: Any) -> Any:
    """What YAML read as a bool, a number or null, as SQL spells it."""
    if value is None:
        return "null"
    if isinstance(value, (bool, int, float)):
        return str(value).lower()
    return value


Names = Annotated[list[Name], BeforeValidator(_listed, json_schema_input_type=list[str] | str)]
Sql = Annotated[str, BeforeValidator(_literal, json_schema_input_type=str | float | bool | None), Field(min_length=1)]


class TableEntry(Part):
    """One target table. Exactly one of `from`, `select` and `sql`; `rename` and `set` go with `from`."""

    to: Name
    from_: Name | None = Field(default=None, alias="from")
    rename: dict[Name, Name] = Field(default_factory=dict, description="old column: new column")
    set_: dict[Name, Sql] = Field(
        default_factory=dict, alias="set", description="new column: SQL expression over the old columns"
    )
    drop: Names = Field(default_factory=list, description="old columns that new does without")
    key: Names | None = Field(default=None, description="default: the new table's primary key")
    select: str | None = None
    sql: str | None = Field(default=None, description="a file with the SELECT, relative to this one")
    feeds: dict[Name, Sql | list[Sql]] = Field(
        default_factory=dict, description="old table: how its rows find the new rows they feed"
    )
    _sql_text: str | None = PrivateAttr(None)
    _place: str = PrivateAttr("")

    @model_validator(mode="after")
    def _one_source(self) -> TableEntry:
        given = [
            name
            for name, value in (("from", self.from_), ("select", self.select), ("sql", self.sql))
            if value is not None
        ]
        if len(given) != 1 and (given or not self._adds()):
            said = " and ".join(given) if given else "none of them"
            raise ValueError(f"an entry needs exactly one of `from`, `select` and `sql`; this one has {said}")
        if self.from_ is None and (self.rename or (self.set_ and not self._adds())):
            raise ValueError("`rename` and `set` go with `from`; in a SELECT, write `old as new` or the expression")
        if self.key is not None and (not self.key or len(set(self.key)) != len(self.key)):
            raise ValueError("`key` lists each column once, and at least one; leave it out for the table's primary key")
        return self

    def _adds(self) -> bool:
        """Whether the entry only says how columns are computed, of a SELECT that is derived."""
        return False

    @property
    def text(self) -> str | None:
        """The SELECT as it was written; None for the shorthand."""
        return self.select if self.select is not None else self._sql_text

    @property
    def place(self) -> str:
        """`migration.yaml line 12, tables: address`."""
        return self._place or f"tables: {self.to}"

    def canonical(self) -> dict[str, Any]:
        """What a change of would change the rows written."""
        return {
            "to": self.to, "from": self.from_, "rename": self.rename, "set": self.set_, "drop": sorted(self.drop),
            "key": self.key, "text": self.text, "feeds": self.feeds,
        }  # fmt: skip


class ReverseEntry(TableEntry):
    """One old table's way back. With `set` alone, the rest of its SELECT is derived from the forward mappings."""

    def _adds(self) -> bool:
        return self.from_ is None and self.select is None and self.sql is None and bool(self.set_) and not self.rename

    @property
    def adds(self) -> bool:
        """Whether it only says how some columns are computed."""
        return self._adds()


def _named_alike(value: Any) -> Any:
    """A plain name (or pattern) is a sequence of that name on both sides."""
    listed = _listed(value)
    return [{"to": v, "from": v} if isinstance(v, str) else v for v in listed] if isinstance(listed, list) else listed


class SequenceEntry(Part):
    """A sequence of new that goes on where one of old stands, and the other way round after a turn back.

    Names are without a schema where it is the side's own; a pattern stands for all of the same name on both sides.
    """

    to: Name
    from_: Name = Field(alias="from")

    @property
    def pattern(self) -> str | None:
        """What both names have to match, where they are one pattern."""
        return self.to if self.to == self.from_ and any(c in self.to for c in "*?[") else None


Sequences = Annotated[
    list[SequenceEntry],
    BeforeValidator(_named_alike, json_schema_input_type=list[SequenceEntry | str] | str),
]


class Spec(Part):
    """A whole migration.yaml."""

    migration: str = Field(pattern=r"^[a-z][a-z0-9_]{0,30}$", description="names slots, publications and topics")
    old: Old
    new: New
    kafka: Kafka
    http: Http = Field(default_factory=Http)
    log: Log = Field(default_factory=Log)
    epoch: EpochPart = Field(default_factory=EpochPart)
    backfill: Backfill = Field(default_factory=Backfill)
    verify: Verify = Field(default_factory=Verify)
    cutover: Cutover = Field(default_factory=Cutover)
    roundtrip: Roundtrip = Field(default_factory=Roundtrip)
    quarantine: Quarantine = Field(default_factory=Quarantine)
    finalize: Finalize = Field(default_factory=Finalize)
    hooks: Hooks = Field(default_factory=Hooks)
    copy_: Names = Field(default_factory=list, alias="copy", description='"*", or a list of old tables and patterns')
    exclude: Names = Field(default_factory=list, description="old tables and patterns that stay behind")
    drop: Names = Field(default_factory=list, description="old columns (table.column) that new does without")
    trust: Names = Field(default_factory=list, description="functions that depend on their arguments alone")
    tables: list[TableEntry] = Field(default_factory=list)
    reverse: list[ReverseEntry] = Field(default_factory=list)
    sequences: Sequences = Field(
        default_factory=list,
        description="sequences that feed no column: {to: new's, from: old's}, or names and patterns that both sides"
        ' have; all of them where copy is "*"',
    )
    exclude_sequences: Names = Field(
        default_factory=list, description="sequences and patterns, of either side, that no turn sets"
    )
    _path: Path | None = PrivateAttr(None)
    _given: Path | None = PrivateAttr(None)
    _document: yaml_file.Document | None = PrivateAttr(None)

    @field_validator("migration", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, str) or not value:
            raise ValueError("a migration needs a name: a lower-case letter, then letters, digits and _, 31 at most")
        return value

    @field_validator("drop")
    @classmethod
    def _columns(cls, value: list[str]) -> list[str]:
        for name in value:
            if "." not in name.strip("."):
                raise ValueError(f"{name!r} does not name a column: write table.column")
        return value

    @property
    def path(self) -> Path | None:
        return self._path

    @property
    def command(self) -> str:
        """How a verb is called on this file from where it was called now: `slackwater -c deploy/shop.yaml`."""
        return f"slackwater -c {shlex.quote(str(self._given or 'migration.yaml'))}"

    @property
    def substituted(self) -> frozenset[str]:
        """Every value that the environment has put into the file."""
        return self._document.substituted if self._document else frozenset()

    def place(self, *path: str | int) -> str:
        """Where something stands in the file, for a message: `migration.yaml line 12`."""
        return self._document.place(path) if self._document else ".".join(str(p) for p in path)

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that decides which rows are written, and of nothing else (no rate, limit or DSN)."""
        content = {
            "old": self.old.schema_,
            "new": self.new.schema_,
            "copy": sorted(self.copy_),
            "exclude": sorted(self.exclude),
            "drop": sorted(self.drop),
            "trust": sorted(self.trust),
            "tables": sorted((e.canonical() for e in self.tables), key=lambda e: str(e["to"])),
            "reverse": sorted((e.canonical() for e in self.reverse), key=lambda e: str(e["to"])),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse_spec(text: str, *, name: str = "migration.yaml", env: Mapping[str, str], folder: Path | None = None) -> Spec:
    """A file's text to a Spec. `folder` is where its `sql:` and `ddl:` files are looked up.

    Errors: ConfigError, with every mistake that was found, each with its line.
    """
    document = yaml_file.read(text, name=name, env=env)
    if not isinstance(document.value, dict):
        raise ConfigError(f"{name}: a migration file is a mapping of keys", hint="`slackwater init` prints a first one")
    try:
        spec = Spec.model_validate(document.value)
    except ValidationError as error:
        failure = spec_errors.explain(error, document, Spec)
    else:
        spec._document = document
        _attach(spec, document, folder)
        return spec
    raise failure  # outside the handler: the original's context could be printed along, and it holds the input


def load_spec(path: Path, env: Mapping[str, str]) -> Spec:
    """The file at `path`, its `sql:` and `ddl:` files read along. Errors: ConfigError."""
    text = _read(path, str(path), "give the file with -c or SLACKWATER_CONFIG; `slackwater init` prints a first one")
    spec = parse_spec(text, name=path.name, env=env, folder=path.resolve().parent)
    spec._path = path.resolve()
    spec._given = path
    return spec


def _attach(spec: Spec, document: yaml_file.Document, folder: Path | None) -> None:
    for part, entries in (("tables", spec.tables), ("reverse", spec.reverse)):
        for i, entry in enumerate(entries):
            entry._place = f"{document.place((part, i))}, {part}: {entry.to}"
            if entry.sql is not None:
                entry._sql_text = _beside(folder, entry.sql, document.place((part, i, "sql")))
    if spec.new.ddl is not None:
        spec.new._ddl_text = _beside(folder, spec.new.ddl, document.place(("new", "ddl")))


def _beside(folder: Path | None, name: str, place: str) -> str:
    return _read((folder or Path()) / name, f"{place}: {name}", "paths are relative to the migration file")


def _read(path: Path, what: str, hint: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{what}: cannot be read: {error.strerror}", hint=hint) from error
    except UnicodeDecodeError:
        raise ConfigError(f"{what}: is not UTF-8", hint="save the file as UTF-8") from None


def json_schema() -> dict[str, Any]:
    """The file's JSON Schema, for editors and CI."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Spec.model_json_schema(by_alias=True)}
