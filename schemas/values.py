"""The configuration's small values: DSNs that do not show themselves, byte sizes, windows of time, names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)[bB]?")
_WINDOW = re.compile(r"(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})\s+(\S+)")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SECRET = re.compile(r"pass|secret|token|key|credential|jaas|oauth|user\.?info|auth\.info", re.IGNORECASE)
HIDDEN = "***"


class Dsn(str):
    """A libpq connection string. It is one wherever a string is wanted, but neither repr, a dump of the configuration
    nor a validation error shows it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Dsn({HIDDEN})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls.checked,
            core_schema.str_schema(),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda _: HIDDEN),
        )

    @classmethod
    def checked(cls, text: str) -> Dsn:
        if not text.strip():
            raise ValueError("an empty DSN: give libpq's form, `host=... dbname=...` or `postgresql://...`")
        return cls(text)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "title": "DSN", "description": "libpq connection string; best as ${VARIABLE}"}


class Options(dict[str, str]):
    """Options handed to a client library as they are. Those that look like secrets are hidden from repr and dumps."""

    __slots__ = ()

    def shown(self) -> dict[str, str]:
        return {k: HIDDEN if _SECRET.search(k) else v for k, v in self.items()}

    def __repr__(self) -> str:
        return f"Options({self.shown()!r})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        value = core_schema.no_info_plain_validator_function(_option)
        return core_schema.no_info_after_validator_function(
            cls,
            core_schema.dict_schema(core_schema.str_schema(), value),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda o: cls(o).shown()),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}


def _option(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"  # as librdkafka and Java spell it
    if isinstance(value, (str, int, float)):
        return str(value)
    raise ValueError("an option is a string, a number, or true or false")


def parse_size(value: Any) -> int:
    """`16MB` (powers of 1024, as PostgreSQL reads it) or a plain number to bytes. ValueError otherwise."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a size is a number of bytes or reads like 16MB, 512kB, 1GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Daily hours in which something may run, in a named time zone; over midnight when `end` is not after `start`."""

    start: time
    end: time
    zone: str

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M} {self.zone}"

    def contains(self, at: datetime) -> bool:
        """Whether `at` (aware) lies inside. A window that ends where it starts is the whole day."""
        now = at.astimezone(ZoneInfo(self.zone)).time()
        if self.start < self.end:
            return self.start <= now < self.end
        return now >= self.start or now < self.end

    @classmethod
    def parse(cls, text: Any) -> Window:
        if isinstance(text, Window):
            return text
        match = _WINDOW.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise ValueError('a window reads like "22:00-05:00 Europe/Berlin": two times and a time zone')
        hours = [int(match[i]) for i in (1, 2, 3, 4)]
        if max(hours[0], hours[2]) > 23 or max(hours[1], hours[3]) > 59:
            raise ValueError("a window's times go from 00:00 to 23:59")
        try:
            ZoneInfo(match[5])
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(
                f"{match[5]} is not a time zone this machine knows; zones read like Europe/Berlin or UTC"
            ) from None
        return cls(start=time(hours[0], hours[1]), end=time(hours[2], hours[3]), zone=match[5])

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(cls.parse, serialization=core_schema.to_string_ser_schema())

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {
            "type": "string",
            "pattern": r"^\d{1,2}:\d{2}\s*-\s*\d{1,2}:\d{2}\s+\S+$",
            "examples": ["22:00-05:00 Europe/Berlin"],
        }
