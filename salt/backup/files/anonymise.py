# Managed by Saltern: salt/backup/files/anonymise.py.
"""
What makes an anonymised copy of a site's database: a word for each column, and SQL for each word.

The rules of a site (`anonymise` in sites.yaml) name tables and columns:

  <table>: empty            no rows
  <table>: keep             nothing in it tells of a person
  <table>.<column>: fake    something made up of the same kind: an address, a name, a text
  <table>.<column>: hash    a digest
  <table>.<column>: clear   NULL, or an empty text where NULL isn't allowed
  <table>.<column>: keep    as it is

Every column that could tell of a person (texts, JSON, addresses of the network: all but numbers,
times, truth values and UUIDs) needs a word. What has none stops the copy: a column that a
migration adds can't leak because nobody thought of it. The same value becomes the same fake in
every table, so what referred to something still does. The key of the digests is made anew for each
copy and thrown away.

`saltern-backup` runs this on a restored backup; only the standard library is used.
"""

import re
import typing

WORDS = ("fake", "hash", "clear", "keep")
TABLE_WORDS = ("empty", "keep")
ADDRESS = re.compile(r"[\w.%+-]+@[\w-]+\.[\w.-]*\w", re.ASCII)
# How dumps write line feeds and the like.
_ESCAPED = re.compile(r"\\.")

# A fake is one of each of these and a piece of a digest, which makes it unique.
_FIRST = "Ada Ben Cleo Dan Eva Finn Gita Hugo Ida Jan Kira Leo Mia Noah Olga Paul".split()
_LAST = "Ash Birch Cedar Dale Elm Field Grove Hill Iris Jade Lake Moss North Oak Pine Reed".split()
_PROSE = "Lorem ipsum dolor sit amet, consectetur adipiscing elit. "
# Characters; what is longer is prose.
_NAME_LENGTH = 80


class RuleError(Exception):
    """Rules that don't fit the database; its text says which, and what is allowed."""


class Column(typing.NamedTuple):
    """A column of a table; tables outside of the usual schema are named with theirs."""

    table: str
    name: str
    kind: str  # "text", "plain" (can't tell of a person) or "other"
    nullable: bool
    length: int  # characters that fit, 0 if there is no limit


# What a failed migration leaves in a site's database (salt/django/files/release.py): ours to judge.
OWN = {"saltern_failed_migration": "empty"}


def decide(rules, columns):
    """
    The word for each column.

    rules
        ``table`` or ``table.column`` -> word.
    columns
        Every :class:`Column` of the database.

    Returns a dictionary from :class:`Column` to its word, with ``empty`` for those of emptied
    tables and ``keep`` for what can't tell of a person. Raises :class:`RuleError` with all that is
    wrong.
    """
    tables = {column.table for column in columns}
    rules = {table: word for table, word in OWN.items() if table in tables} | rules
    known = tables | {f"{c.table}.{c.name}" for c in columns}
    wrong = [f"{name} is no table or column" for name in sorted(set(rules) - known)]
    decided, undecided = {}, []
    for column in columns:
        own, table = f"{column.table}.{column.name}", rules.get(column.table)
        word = rules.get(own, table)
        if own in rules:
            wrong += _unfit(column, own, word)
        elif table is not None and table not in TABLE_WORDS:
            wrong.append(f"{column.table}: {table!r} is none of {', '.join(TABLE_WORDS)}")
        elif word is None and column.kind != "plain":
            undecided.append(own)
        decided[column] = word or "keep"
    if undecided:
        wrong.append(
            f"no rule for {', '.join(undecided)}: give each one of {', '.join(WORDS)}, or its "
            f"table one of {', '.join(TABLE_WORDS)}"
        )
    if wrong:
        raise RuleError("; ".join(dict.fromkeys(wrong)))
    return decided


def _unfit(column, own, word):
    """Why a word doesn't fit a column."""
    if word not in WORDS:
        return [f"{own}: {word!r} is none of {', '.join(WORDS)}"]
    if word in ("fake", "hash") and column.kind != "text":
        return [f"{own} is no text: it can be cleared or kept"]
    if word == "clear" and column.kind != "text" and not column.nullable:
        return [f"{own} can't be NULL: keep it, or empty the table"]
    return []


def emptied(decided):
    """The tables that lose all rows, sorted."""
    return sorted({column.table for column, word in decided.items() if word == "empty"})


def assignments(decided, quoted, digest, pick, read=str):
    """
    What an UPDATE of each table sets.

    decided
        As :func:`decide` returns it.
    quoted
        Writes a column's name as SQL.
    digest
        Writes SQL for the digest of an expression, as hexadecimal text.
    pick
        Writes SQL that takes one of a list of texts by some hexadecimal digits.
    read
        Writes SQL that reads a column, given its name as SQL.

    Returns a dictionary from table to a list of ``column = expression``.
    """
    found = {}
    for column, word in decided.items():
        name = quoted(column.name)
        if word == "clear":
            value = "NULL" if column.nullable else "''"
        elif word == "hash":
            value = f"left({digest(read(name))}, {column.length or 64})"
        elif word == "fake":
            value = _fake(read(name), column.length, digest, pick)
        else:
            continue
        if word != "clear":
            own = read(name)
            value = f"CASE WHEN {own} IS NULL OR {own} = '' THEN {own} ELSE {value} END"
        found.setdefault(column.table, []).append(f"{name} = {value}")
    return found


def _fake(name, length, digest, pick):
    """SQL that makes up something of the kind that a text is."""
    code = digest(name)
    if 0 < length < 40:
        return f"left({code}, {length})"
    first, last = pick(f"left({code}, 4)", _FIRST), pick(f"right({code}, 4)", _LAST)
    called = f"concat({first}, ' ', {last}, ' ', left({code}, 12))"
    prose = f"left(repeat('{_PROSE}', 1 + char_length({name}) / {len(_PROSE)}), "
    prose += f"char_length({name}))"
    return (
        f"CASE WHEN {name} LIKE '%_@_%' AND {name} NOT LIKE '% %'"
        f" THEN concat('user-', left({code}, 16), '@example.com')"
        f" WHEN char_length({name}) > {_NAME_LENGTH} THEN {prose}"
        f" WHEN {name} LIKE '% %' THEN {called}"
        f" ELSE replace(lower({called}), ' ', '-') END"
    )


def addresses(text):
    """The e-mail addresses in a text, in lower case: a set."""
    return {found.lower() for found in ADDRESS.findall(text)}


def unescaped(line):
    """A line of a dump, with blanks for the characters that are written as others."""
    return _ESCAPED.sub(" ", line)


def leaks(lines, originals):
    """
    Original addresses that are left in a dump.

    lines
        The dump's lines.
    originals
        Addresses in lower case.

    Returns a set of them.
    """
    found = set()
    for line in lines:
        if "@" in line:
            found |= addresses(unescaped(line)) & originals
    return found
