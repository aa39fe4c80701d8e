"""What `cutover.gates` may say: each gate's name, its thresholds, and which of them may be switched off.

Invariant: a gate that correctness rests on cannot be switched off; one that is
switched off is shown as such, with the state that it would have.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

HOUR_S = 3600.0
DAY_S = 86_400.0


class Settings(BaseModel):
    """One gate, as the file sets it: `false` or `off` switches it off, a mapping sets its thresholds."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, validate_by_name=True, validate_by_alias=True
    )

    on: bool = True


class ForeignKeys(Settings):
    max_age_s: float = Field(default=DAY_S, gt=0, description="how old the look for orphans may be")
    except_: list[str] = Field(default_factory=list, alias="except", description="constraints, as table.constraint")


class Statistics(Settings):
    min_rows: int = Field(default=1000, ge=0, description="smaller tables need none")


class SlotHeadroom(Settings):
    min_bytes: int | None = Field(default=None, gt=0, description="WAL that must be left before the slot is lost")


class Grants(Settings):
    except_: list[str] = Field(
        default_factory=list, alias="except", description='roles that will not write: "etl", or "web on sales"'
    )


class CanaryAge(Settings):
    max_s: float = Field(default=180.0, gt=0, description="how old the newest canary that came through may be")


def _opened(value: Any) -> Any:
    """`true`, `on` and an empty value are the gate as it is."""
    if value is None or value is True or value == "on":
        return {}
    if value is False or value == "off":
        return {"on": False}
    return value


def _never_off(why: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        opened = _opened(value)
        if isinstance(opened, dict) and opened.get("on") in (False, "off"):
            raise ValueError(f"this gate cannot be switched off: {why}")
        return opened

    return BeforeValidator(check, json_schema_input_type=Settings | bool)


Gate = Annotated[Settings, BeforeValidator(_opened, json_schema_input_type=Settings | bool)]
_LOSS = "rows would be missing on the other side"
_WAIVED = "waive the rows themselves, by name and with a reason: `slackwater quarantine waive`"
_LAG = "cutover.max_lag_s sets how much lag is too much"

Fixed = Annotated[Settings, _never_off(_LOSS)]


class Gates(BaseModel):
    """Every gate there is, by its name."""

    model_config = Settings.model_config

    prepared: Fixed = Field(default_factory=Settings)
    roles: Fixed = Field(default_factory=Settings)
    backfill: Fixed = Field(default_factory=Settings)
    lag: Annotated[Settings, _never_off(_LAG)] = Field(default_factory=Settings)
    quarantine: Annotated[Settings, _never_off(_WAIVED)] = Field(default_factory=Settings)
    reread: Fixed = Field(default_factory=Settings)
    silent_changes: Fixed = Field(default_factory=Settings)
    verification: Gate = Field(default_factory=Settings)
    roundtrip: Gate = Field(default_factory=Settings)
    unmapped_columns: Gate = Field(default_factory=Settings)
    foreign_keys: Annotated[ForeignKeys, BeforeValidator(_opened, json_schema_input_type=ForeignKeys | bool)] = Field(
        default_factory=ForeignKeys
    )
    statistics: Annotated[Statistics, BeforeValidator(_opened, json_schema_input_type=Statistics | bool)] = Field(
        default_factory=Statistics
    )
    slot_headroom: Annotated[SlotHeadroom, BeforeValidator(_opened, json_schema_input_type=SlotHeadroom | bool)] = (
        Field(default_factory=SlotHeadroom)
    )
    fence: Annotated[Settings, _never_off("both sides would take writes")] = Field(default_factory=Settings)
    grants: Annotated[Grants, BeforeValidator(_opened, json_schema_input_type=Grants | bool)] = Field(
        default_factory=Grants
    )
    sequences: Annotated[Settings, _never_off("`exclude_sequences` in the file leaves single ones alone, by name")] = (
        Field(default_factory=Settings)
    )
    replica_identity: Annotated[
        Settings, _never_off("PostgreSQL would refuse the application's UPDATE and DELETE on such a table of new")
    ] = Field(default_factory=Settings)
    armed: Annotated[Settings, _never_off("without it there is no way back")] = Field(default_factory=Settings)
    canary_age: Annotated[CanaryAge, BeforeValidator(_opened, json_schema_input_type=CanaryAge | bool)] = Field(
        default_factory=CanaryAge
    )
    foreign_writes: Annotated[Settings, _never_off("`slackwater foreign-writes` accepts or discards them, by name")] = (
        Field(default_factory=Settings)
    )
    window: Annotated[Settings, _never_off("leave out cutover.window")] = Field(default_factory=Settings)

    def settings(self, gate: str) -> Settings:
        """The gate's settings. AttributeError for one that does not exist."""
        found: Settings = getattr(self, gate)
        return found


NAMES: tuple[str, ...] = tuple(Gates.model_fields)
