"""Enough of SQL's grammar to tell strings, names and comments from the rest.

Used to say why a statement is refused, to find parameters, and to find the few functions with which
a superuser of Postgres could step out of the role that the database holds to reading (`readonly`).
So nothing that Postgres runs may look like a string or a comment here: tokens are Postgres's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from sweep.errors import RequestError

_TOKEN = re.compile(
    r"""
      (?P<string>  [eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' )
    | (?P<name>    "(?:[^"]|"")*" )
    | (?P<dollar>  \$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$ )
    | (?P<comment> --[^\n\r]* | /\*.*?\*/ )
    | (?P<param>   (?<![:\w]):[A-Za-z_]\w* )
    | (?P<word>    (?:[^\W\d]|[^\x00-\x7f])(?:[\w$]|[^\x00-\x7f])* )
    | (?P<number>  \d+(?:\.\d*)?(?:[eE][+-]?\d+)? )
    | (?P<space>   \s+ )
    | (?P<open>    ['"] | /\* )
    | (?P<other>   :: | . )
    """,
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    """`kind` is string, name, dollar, comment, param, word, number, space, open or other."""

    kind: str
    text: str


def tokens(sql: str) -> Iterator[Token]:
    """The tokens of `sql`; joined, their texts are `sql` again."""
    for match in _TOKEN.finditer(sql):
        kind = match.lastgroup if match.lastgroup != "tag" else "dollar"
        assert kind is not None
        yield Token(kind, match.group())


_READS = ("SELECT", "WITH", "VALUES", "EXPLAIN")


def one_reading_statement(sql: str) -> str:
    """`sql` without a closing semicolon; raises RequestError unless it is one reading statement."""
    found = [token for token in tokens(sql) if token.kind not in ("space", "comment")]
    while found and found[-1].text == ";":
        found.pop()
    if not found:
        raise RequestError("The SQL is empty. Give one SELECT, e.g. SELECT * FROM sweep_studies")
    if any(token.text == ";" for token in found):
        raise RequestError("One statement at a time: give a single SELECT, without a semicolon.")
    if any(token.kind == "open" for token in found):
        raise RequestError("A quote or a comment is opened in the SQL and never closed.")
    if any(token.text == "\0" for token in found) or "\0" in sql:
        raise RequestError("The SQL holds the character NUL, which no database reads.")
    first = first_word(sql)
    if first not in _READS:
        raise RequestError(
            f"Only {', '.join(_READS[:-1])} and EXPLAIN are run here, not {first[:20]!r}: "
            "queries never change the database."
        )
    return sql.rstrip().rstrip(";").rstrip()


def one_expression(sql: str) -> str:
    """`sql` if it can stand inside parentheses; raises RequestError otherwise."""
    depth = 0
    for token in tokens(sql):
        depth += {"(": 1, ")": -1}.get(token.text, 0)
        if token.text == ";" or token.kind == "open" or "\0" in token.text or depth < 0:
            break
    else:
        if depth == 0 and sql.strip():
            return sql
    raise RequestError(
        f"The condition {sql[:60]!r} is not one SQL expression. "
        "Write e.g.: state = 'FAIL' and learning_rate > 1"
    )


def names(sql: str) -> list[str]:
    """The double-quoted names in `sql`, unquoted."""
    return [t.text[1:-1].replace('""', '"') for t in tokens(sql) if t.kind == "name"]


def first_word(sql: str) -> str:
    """The first word of `sql` in capitals; parentheses and comments before it do not count."""
    shown = (t.text for t in tokens(sql) if t.kind not in ("space", "comment") and t.text != "(")
    return next(shown, "").upper()


def identifiers(sql: str) -> list[str]:
    """Every word and quoted name in `sql`, in lower case.

    Raises RequestError for what Postgres reads in a way of its own: names written in escapes
    (U&"..."), and comments inside comments.
    """
    found, before = [], ""
    for token in tokens(sql):
        if token.kind == "name" and before.lower().endswith("u&"):
            raise RequestError('Names written as U&"..." are not read here; write them plainly.')
        if token.kind == "comment" and "/*" in token.text[2:]:
            raise RequestError("A comment inside a comment is not read here; take one away.")
        if token.kind in ("word", "name"):
            found.append(token.text.strip('"').lower())
        before = before[-1:] + token.text
    return found


def parameters(sql: str) -> list[str]:
    """The names of the `:name` parameters in `sql`."""
    return list(dict.fromkeys(t.text[1:] for t in tokens(sql) if t.kind == "param"))


def as_pyformat(sql: str, texts: Collection[str] = ()) -> str:
    """`sql` with `:name` written as psycopg's %(name)s, and every other % doubled.

    The parameters named in `texts` are said to be text.
    """
    parts = []
    for token in tokens(sql):
        if token.kind != "param":
            parts.append(token.text.replace("%", "%%"))
            continue
        name = token.text[1:]
        parts.append(f"CAST(%({name})s AS text)" if name in texts else f"%({name})s")
    return "".join(parts)
