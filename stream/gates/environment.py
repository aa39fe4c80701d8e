"""Gates on what surrounds the stream: tables nobody mapped, fences, foreign keys, statistics, grants, identities."""

from __future__ import annotations

from schemas.direction import Direction, Side
from schemas.spec import Spec
from stream.gates.facts import Facts, Stream
from stream.gates.gate import Gate, failed, listed, passed, unknown
from stream.monitoring.clock import rfc3339


def unmapped_columns(facts: Facts, c: str, direction: Direction = Direction.FORWARD) -> Gate:
    remedy, found = f"map or exclude them, then {c} prepare", facts.strangers
    if direction is Direction.REVERSE:
        remedy, found = f"add them to old too, or accept that old lacks them; then {c} prepare", facts.new_strangers
    if found is None:
        return unknown("unmapped_columns", "a side does not answer", remedy)
    if found:
        return failed("unmapped_columns", f"nothing reads {listed(found)}", remedy)
    return passed("unmapped_columns", "none")


def silent_changes(facts: Facts, c: str) -> Gate:
    """By what each side keeps of changes that no event told of, and by its catalogs as they are now."""
    if facts.silent is None:
        return unknown("silent_changes", facts.blind or "a side does not answer", f"{c} status")
    if not facts.silent:
        return passed("silent_changes", "nothing has changed a table without an event")
    remedy = f"undo it, or {c} prepare: it loads that table anew" if facts.prepare_mends else (
        f"`{c} run` compares what it concerns and reads it again; {c} verify says how far that is"
    )  # fmt: skip
    return failed("silent_changes", listed(facts.silent), remedy)


def fence(stream: Stream, side: Side, c: str) -> Gate:
    if stream.unfenced is None:
        return unknown("fence", f"{side} does not answer", f"{c} prepare")
    if stream.unfenced:
        return failed("fence", f"no fence on {listed(stream.unfenced)}", f"{c} prepare")
    return passed("fence", "none missing")


def foreign_keys(facts: Facts, spec: Spec, c: str, direction: Direction = Direction.FORWARD) -> Gate:
    """By the applier's last look for orphans on its target: replica role has written past these keys."""
    options, again = spec.cutover.gates.foreign_keys, f"{c} gates --recheck"
    side, source = direction.target, direction.source
    known, look = facts.foreign_keys, facts.orphans
    if direction is Direction.REVERSE:
        again += f" --direction {direction}"
        known, look = facts.old_foreign_keys, facts.old_orphans
    if known is None:
        silent = "new does not answer" if direction is Direction.FORWARD else "the way back is not armed"
        return unknown("foreign_keys", facts.blind or silent, f"{c} status")
    if known == 0:
        return passed("foreign_keys", f"{side} has none")
    if look is None:
        return unknown("foreign_keys", f"{known} keys, not looked at yet", again)
    when = f"looked at {rfc3339(look.at)}"
    if not look.current:
        return unknown("foreign_keys", f"the keys have changed since they were {when}", again)
    counted = [o for o in look.orphans if o.key not in options.except_]
    bad = [f"{o.rows:,} rows of {o.child} refer to no row of {o.parent} ({o.key})" for o in counted if o.rows]
    if bad:
        remedy = f"mend them on {source}, where they come from, then {again}; or name the key under cutover.gates"
        if direction is Direction.REVERSE:
            remedy += f"; {c} rollback --waive foreign_keys --reason ... goes back all the same"
        return failed("foreign_keys", f"{listed(bad)}, {when}", remedy)
    if look.age_s > options.max_age_s:
        return unknown("foreign_keys", f"{when}, longer ago than {options.max_age_s:g} s", again)
    blind = [f"{o.key}: {o.why}" for o in counted if o.rows is None]
    if blind:
        remedy = f"{again}; a key that cannot be looked at: see for yourself, then name it under cutover.gates"
        return unknown("foreign_keys", f"not looked at: {listed(blind)}", remedy)
    return passed("foreign_keys", f"{len(counted)} hold, {when}")


def statistics(facts: Facts, c: str) -> Gate:
    if facts.unanalysed is None:
        return unknown("statistics", facts.blind or "new does not answer", f"{c} status")
    if facts.unanalysed:
        remedy = "; ".join(f"analyze {name}" for name in facts.unanalysed[:5])
        return failed("statistics", f"not analysed since they were loaded: {listed(facts.unanalysed)}", remedy)
    return passed("statistics", "analysed since loaded")


def grants(facts: Facts, c: str) -> Gate:
    if facts.lacking is None or facts.strange_roles is None:
        other = "new does not answer" if facts.same_file is None else "the mappings are not the ones that were prepared"
        return unknown("grants", facts.blind or other, f"{c} status")
    said = []
    if facts.strange_roles:
        said.append(f"roles that write on old are not there on new: {listed(facts.strange_roles)}")
    if facts.lacking:
        said.append(f"{len(facts.lacking)} grants are missing on new")
    if not said:
        return passed("grants", "every role that writes on old can write on new")
    made = [f"create role {name}" for name in facts.strange_roles]
    remedy = "; ".join([*made, *facts.lacking][:5])
    more = len(made) + len(facts.lacking) - 5
    remedy += f" (and {more} more: `gates --json` has all)" if more > 0 else ""
    return failed("grants", "; ".join(said), f"{remedy} -- or name them under cutover.gates.grants.except")


def sequences(facts: Facts, direction: Direction, c: str) -> Gate:
    """By a look at most half a minute old: the turn looks again, before the hold and under it."""
    found = None if facts.sequences is None else facts.sequences.get(direction)
    if found is None:
        armed = facts.sequences is None or direction is Direction.FORWARD
        why = facts.sequences_blind or ("the mappings are not the ones that were prepared" if armed else "not armed")
        return unknown("sequences", why, f"{c} status" if armed else f"{c} arm")
    if found.wrong:
        remedies = list(dict.fromkeys(remedy for _, remedy in found.wrong))
        more = f" (and {len(remedies) - 3} more: `check` has all)" if len(remedies) > 3 else ""
        return failed("sequences", listed((cause for cause, _ in found.wrong), 3), f"{'; '.join(remedies[:3])}{more}")
    if found.unknown:
        return unknown("sequences", listed(found.unknown), f"run what `{c} grants` prints, on both sides")
    target, source = direction.target, direction.source
    said = (
        f"{len(found.judged)} of {target} go on from {source}'s" if found.judged else f"none of {target} is to be set"
    )
    excluded = f", excluded: {listed(found.excluded)}" if found.excluded else ""
    doubts = f"; {listed(found.doubts)}" if found.doubts else ""
    return passed("sequences", f"{said}{excluded}{doubts}")


def replica_identity(facts: Facts, c: str) -> Gate:
    if facts.unidentified is None:
        return unknown("replica_identity", facts.blind or "new does not answer", f"{c} status")
    if facts.unidentified:
        remedy = "; ".join(f"alter table {name} replica identity full" for name in facts.unidentified[:5])
        detail = f"the way back cannot name the old rows of {listed(facts.unidentified)}"
        return failed("replica_identity", detail, f"{remedy} -- or give them a primary key")
    return passed("replica_identity", "every table of new names its rows")
