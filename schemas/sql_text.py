"""A mapping's text, read: one SELECT, and nothing in it that would make a row depend on anything but the old rows.

Guards: what is refused here is refused before a server is asked. The text itself is never changed; it is only read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlglot import TokenType, exp, tokenize
from sqlglot import parse as sqlglot_parse
from sqlglot.errors import SqlglotError

from schemas import functions
from schemas.names import fold, quote

if TYPE_CHECKING:
    from sqlglot.tokenizer_core import Token

_TIMES = frozenset({"DATE", "TIME", "TIMETZ", "TIMESTAMP", "TIMESTAMPTZ", "TIMESTAMPNTZ", "TIMESTAMPLTZ"})
_WORDS = frozenset(
    {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp", "current_user", "session_user"}
    | {"user", "current_role", "current_catalog", "current_schema", "system_user"}
)

logging.getLogger("sqlglot").setLevel(logging.ERROR)  # it warns of what it cannot read; here that is refused in words


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong with a text, and what to do."""

    cause: str
    remedy: str


@dataclass(slots=True)
class Parsed:
    """`query` is None when the text could not be read at all. `text` is the statement without its closing semicolon."""

    text: str
    query: exp.Query | None = None
    faults: list[Fault] = field(default_factory=list)

    def refuse(self, cause: str, remedy: str) -> None:
        fault = Fault(cause=cause, remedy=remedy)
        if fault not in self.faults:
            self.faults.append(fault)


def name_of(node: exp.Expr | None) -> str:
    """An identifier's name as PostgreSQL knows it: folded unless it was quoted."""
    if isinstance(node, exp.Identifier):
        return str(node.this) if node.args.get("quoted") else fold(str(node.this))
    return fold(node.name) if node is not None else ""


def parse(text: str) -> Parsed:
    """Read a text and collect what is wrong with it."""
    parsed = Parsed(text=text.strip())
    try:
        tokens = tokenize(text, read="postgres")
        statements = [s for s in sqlglot_parse(text, read="postgres") if s is not None]
    except SqlglotError as error:
        parsed.refuse(
            _syntax(error), "correct the SELECT; what this parser cannot read, put into a function in the database"
        )
        return parsed
    statements = [s for s in statements if not isinstance(s, exp.Semicolon)]
    if len(statements) != 1:
        parsed.refuse(f"{len(statements)} statements where one SELECT belongs", "keep one SELECT; use `with` for steps")
        return parsed
    parsed.text = _without_semicolon(text, tokens)
    statement = statements[0]
    if not isinstance(statement, exp.Query):
        parsed.refuse("this is not a SELECT", "write the new table as one SELECT over old tables")
        return parsed
    parsed.query = statement
    _clauses(parsed, statement)
    _calls(parsed, tokens)
    _clock_words(parsed, statement)
    return parsed


def _syntax(error: SqlglotError) -> str:
    details = getattr(error, "errors", None) or [{}]
    first = details[0]
    where = f" at line {first['line']}, column {first['col']}" if first.get("line") else ""
    near = f", near {first['highlight']!r}" if first.get("highlight") else ""
    reason = str(first.get("description") or str(error).splitlines()[0]).rstrip(".")
    if "missing for" in reason:
        reason = "something is missing here"
    return f"syntax error{where}{near}: {reason}"


def _without_semicolon(text: str, tokens: list[Token]) -> str:
    """Up to the last token that is not a semicolon, with the comments before it."""
    kept = [t for t in tokens if t.token_type is not TokenType.SEMICOLON]
    return text[: kept[-1].end + 1].strip() if len(kept) < len(tokens) else text.strip()


def _clauses(parsed: Parsed, statement: exp.Expr) -> None:
    whole = "every old row counts: filter with `where` on old columns instead"
    for node in statement.walk():
        match node:
            case exp.Limit() | exp.Fetch():
                parsed.refuse("`limit` is not a function of the row", whole)
            case exp.Offset():
                parsed.refuse("`offset` is not a function of the row", whole)
            case exp.TableSample():
                parsed.refuse("`tablesample` reads a part of the rows by chance", whole)
            case exp.Lock():
                parsed.refuse("a mapping locks nothing (`for update`, `for share`)", "leave the locking clause out")
            case exp.Into():
                parsed.refuse("`select into` writes", "leave `into` out: the entry's `to` names the new table")
            case exp.Insert() | exp.Update() | exp.Delete() | exp.Merge():
                parsed.refuse("the text writes rows", "a mapping only reads; write it as a SELECT")
            case exp.Placeholder() | exp.Parameter():
                parsed.refuse("the text has a parameter", "write the value into the text")
            case exp.Command():
                parsed.refuse("the text holds a part that cannot be read", "write it as a plain SELECT")
            case exp.Table():
                _table(parsed, node)
            case exp.Join() if fold(str(node.args.get("method") or "")) == "natural":
                parsed.refuse(
                    "`natural join` joins by whatever columns there are", "write `using (...)` with the columns' names"
                )
            case exp.Column() if name_of(node.this) in functions.SYSTEM_COLUMNS:
                parsed.refuse(
                    f"{name_of(node.this)} is a system column: it says where a row lies, not what it is",
                    "use the table's own columns",
                )


def _table(parsed: Parsed, node: exp.Table) -> None:
    if node.args.get("only"):
        parsed.refuse("`only` is written", "leave `only` out: each table is read as it is streamed")
    if node.args.get("db") is not None and isinstance(node.this, exp.Identifier):
        shown = ".".join(name_of(part) for part in node.parts)
        parsed.refuse(
            f"{shown} is written with its schema", f"write {name_of(node.this)}: the schema is the migration file's"
        )


def calls(tokens: list[Token]) -> Iterator[tuple[str, str]]:
    """(schema or '', name) of everything that is written like a call, keywords without parentheses too."""
    for i, token in enumerate(tokens):
        before = tokens[i - 1].token_type if i else None
        after = tokens[i + 1].token_type if i + 1 < len(tokens) else None
        quoted = token.token_type is TokenType.IDENTIFIER
        name = token.text if quoted else fold(token.text)
        if token.token_type in (TokenType.STRING, TokenType.NUMBER, TokenType.L_PAREN, TokenType.R_PAREN):
            continue
        if after is TokenType.L_PAREN and before is not TokenType.ALIAS:
            schema = ""
            if before is TokenType.DOT and i >= 2:
                owner = tokens[i - 2]
                schema = owner.text if owner.token_type is TokenType.IDENTIFIER else fold(owner.text)
            yield schema, name
        elif (
            not quoted
            and name in _WORDS
            and before not in (TokenType.DOT, TokenType.ALIAS)
            and after is not TokenType.DOT
        ):
            yield "", name


def _calls(parsed: Parsed, tokens: list[Token]) -> None:
    for schema, name in calls(tokens):
        if schema in ("", "pg_catalog") and functions.refused(name):
            parsed.refuse(
                f"{name}() is not a function of the row: it would give another value in the stream, in the backfill and"
                " in the verification",
                "use a column of the old row, or leave the column out and give the new table a default",
            )


def _clock_words(parsed: Parsed, statement: exp.Expr) -> None:
    """`'now'::timestamp` is a constant of the moment of parsing."""
    for cast in statement.find_all(exp.Cast):
        literal = cast.this
        kind = cast.args.get("to")
        if not (isinstance(literal, exp.Literal) and literal.is_string and isinstance(kind, exp.DataType)):
            continue
        if str(literal.this).strip().lower() in functions.CLOCK_WORDS and kind.this.value in _TIMES:
            parsed.refuse(
                f"'{literal.this}' stands for the moment at which it is read",
                "write the date out, or use an old column",
            )


def select_items(text: str) -> list[str] | None:
    """The outputs of the outermost SELECT as they were written, aliases included; None where there is not just one."""
    tokens = tokenize(text, read="postgres")
    depth, start, items, inside = 0, 0, [], False
    selects = 0
    for i, token in enumerate(tokens):
        kind = token.token_type
        if kind in _OPEN:
            depth += 1
        elif kind in _CLOSE:
            depth -= 1
        elif depth == 0 and kind is TokenType.SELECT:
            selects += 1
            inside, start = True, i + 1
            if start < len(tokens) and tokens[start].token_type in (TokenType.DISTINCT, TokenType.ALL):
                return None
        elif inside and depth == 0 and kind in (TokenType.COMMA, TokenType.FROM):
            items.append(text[tokens[start].start : tokens[i - 1].end + 1])
            start = i + 1
            inside = kind is TokenType.COMMA
    if inside and start < len(tokens):
        items.append(text[tokens[start].start : tokens[-1].end + 1])
    return items if selects == 1 else None


_OPEN = (TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.L_BRACE)
_CLOSE = (TokenType.R_PAREN, TokenType.R_BRACKET, TokenType.R_BRACE)


def over_columns(item: str, columns: dict[str, str]) -> str | None:
    """One output, as an expression over unqualified, quoted columns and without its alias.

    `columns` gives the table's own name for each column that the expression names. None where it names anything else,
    or could not be read by itself.
    """
    try:
        select = sqlglot_parse(f"select {item}", read="postgres")[0]
    except SqlglotError:
        return None
    if not isinstance(select, exp.Select) or len(select.expressions) != 1 or select.args.get("from_") is not None:
        return None
    projection = select.expressions[0]
    end = len(item)
    if isinstance(projection, exp.Alias):
        last = tokenize(item, read="postgres")
        end = last[-2].end + 1 if last[-2].token_type is not TokenType.ALIAS else last[-3].end + 1
        projection = projection.this
    if any(isinstance(n, (exp.Query, exp.AggFunc, exp.Window)) for n in projection.walk()):
        return None
    spans: list[tuple[int, int, str]] = []
    for column in projection.find_all(exp.Column):
        parts = column.parts
        name = name_of(column.this)
        if name not in columns or len(parts) > 2 or "start" not in parts[0].meta:
            return None
        begin, stop = parts[0].meta["start"] - len("select "), parts[-1].meta["end"] + 1 - len("select ")
        spans.append((begin, stop, quote(columns[name])))
    text = item[:end]
    for begin, stop, replacement in sorted(spans, reverse=True):
        text = text[:begin] + replacement + text[stop:]
    return text
