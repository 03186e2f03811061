"""
The language of ``defaults.yaml``: reads such a file as a schema, and values by it.

A comment stands right above each key; the bracket that ends it says what is allowed::

    # Storage for cached answers, in RAM. [size 16M..]
    storage: auto

Nothing here knows of hosts, pillar or Salt: text and values come in, values and sentences about
what is wrong go out. :mod:`settings` puts it to use; ``docs/settings.md`` describes the language.
"""

import copy
import difflib
import re
import typing

import salt.utils.yamldumper
import yaml

# The word for a value that is computed from the hardware.
AUTO = "auto"

_SCALARS = ("bool", "int", "number", "string", "size", "duration", "path")
_RANGED = ("int", "number", "size", "duration")
_EXAMPLES = {"size": "512M", "duration": "30s"}
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class SchemaError(ValueError):
    """A ``defaults.yaml`` that doesn't describe its keys: our own mistake, not an operator's."""


class Size(str):
    """
    An amount of memory or disk: ``512M``, ``64k``, ``8G``. Units are powers of 1024; it prints in
    the largest unit that keeps it whole. Raises ``ValueError`` for anything else.
    """

    __slots__ = ()
    _factors: typing.ClassVar = {"B": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}

    def __new__(cls, text):
        found = re.fullmatch(r"([0-9]+)([BkKMmGg])|0", str(text).strip())
        if not found:
            raise ValueError(f"is {text!r}, which is no size")
        unit = "k" if found[2] in ("k", "K") else (found[2] or "B").upper()
        number = int(found[1] or 0) * cls._factors[unit]
        unit = max((u for u, f in cls._factors.items() if number % f == 0), key=cls._factors.get)
        return super().__new__(cls, f"{number // cls._factors[unit]}{unit}" if number else "0B")

    @property
    def bytes(self):
        """Whole bytes."""
        return int(self[:-1]) * self._factors[self[-1]]

    @property
    def k(self):
        """Whole kibibytes, rounded down."""
        return self.bytes >> 10

    @property
    def M(self):  # noqa: N802 - named as the unit is written
        """Whole mebibytes, rounded down."""
        return self.bytes >> 20

    @property
    def G(self):  # noqa: N802 - named as the unit is written
        """Whole gibibytes, rounded down."""
        return self.bytes >> 30


class Duration(str):
    """
    A time: ``30s``, ``500ms``, ``6h``. It prints in seconds, or in milliseconds where it isn't
    whole seconds, as daemons disagree on what an ``m`` is. Raises ``ValueError`` for anything else.
    """

    __slots__ = ()
    _factors: typing.ClassVar = {
        "ms": 1,
        "s": 1000,
        "m": 60_000,
        "h": 3_600_000,
        "d": 86_400_000,
    }

    def __new__(cls, text):
        found = re.fullmatch(r"([0-9]+)(ms|s|m|h|d)|0", str(text).strip())
        if not found:
            raise ValueError(f"is {text!r}, which is no duration")
        number = int(found[1] or 0) * cls._factors[found[2] or "s"]
        return super().__new__(cls, f"{number}ms" if number % 1000 else f"{number // 1000}s")

    @property
    def ms(self):
        """Whole milliseconds."""
        return int(self[:-2]) if self.endswith("ms") else int(self[:-1]) * 1000

    @property
    def s(self):
        """Whole seconds, rounded up: a limit is never shorter than it was written."""
        return -(-self.ms // 1000)


_MEASURES = {"size": Size, "duration": Duration}


def _number(value):
    """A value as ranges compare it: bytes, milliseconds, or the number that it is."""
    if isinstance(value, Size):
        return value.bytes
    return value.ms if isinstance(value, Duration) else value


# Salt's dumpers write NULL for what they don't know, and each keeps a table of its own.
for _dumper in ("OrderedDumper", "SafeOrderedDumper", "IndentedSafeOrderedDumper"):
    for _measure in _MEASURES.values():
        getattr(salt.utils.yamldumper, _dumper).add_representer(
            _measure, lambda dumper, measure: dumper.represent_str(str(measure))
        )


class Key(typing.NamedTuple):
    """One key of a schema."""

    name: str  # dotted
    text: str  # what the comment says
    bracket: str  # what is allowed, as written
    default: object
    kind: str  # one of _SCALARS, "list", "map" or "choice"
    of: str  # what a list or map is of; None for a map of any scalars
    choices: tuple
    low: object
    high: object
    required: bool  # whether an operator has to give it
    renamed_from: tuple  # dotted

    @property
    def auto(self):
        """Whether the value may be computed."""
        return self.default == AUTO

    @property
    def allowed(self):
        """What is allowed, for a sentence about an error."""
        words = self.bracket
        if self.of in _EXAMPLES or self.kind in _EXAMPLES:
            words += f", such as {_EXAMPLES[self.of or self.kind]}"
        return words + (", or auto" if self.auto else "")

    def value(self, raw):
        """The value as it is handed out. Raises ``ValueError`` that says what is wrong with it."""
        if raw is None:
            if self.default is None:
                return None
            raise ValueError("is empty")
        if raw == AUTO and self.auto:
            return AUTO
        if self.kind == "choice":
            if not any(raw == choice and type(raw) is type(choice) for choice in self.choices):
                raise ValueError(f"is {raw!r}")
            return raw
        if self.kind == "list":
            if not isinstance(raw, list):
                raise ValueError(f"is {raw!r}, not a list")
            return [self._scalar(self.of, element) for element in raw]
        if self.kind == "map":
            if not isinstance(raw, dict):
                raise ValueError(f"is {raw!r}, not a mapping")
            return {str(name): self._element(name, element) for name, element in raw.items()}
        return self._scalar(self.kind, raw)

    def merged(self, old, new):
        """A new value over an old one: maps are merged name by name, null takes a name away."""
        if self.kind != "map" or not isinstance(old, dict) or not isinstance(new, dict):
            return new
        return {name: value for name, value in {**old, **new}.items() if value is not None}

    def _element(self, name, raw):
        if raw is None:
            return None
        if self.of:
            return self._scalar(self.of, raw)
        if isinstance(raw, (dict, list)):
            raise ValueError(f"is nested at {name}: {raw!r}")
        return raw

    def _scalar(self, kind, raw):
        if kind in _MEASURES:
            return self._ranged(_MEASURES[kind](raw))
        if kind in ("int", "number"):
            if isinstance(raw, bool) or not isinstance(raw, int if kind == "int" else (int, float)):
                raise ValueError(f"is {raw!r}")
            return self._ranged(raw)
        if kind == "bool":
            if not isinstance(raw, bool):
                raise ValueError(f"is {raw!r}")
            return raw
        if not isinstance(raw, str):
            raise ValueError(f"is {raw!r}, not text (put it in quotes)")
        if kind == "path" and not raw.startswith("/"):
            raise ValueError(f"is {raw!r}, which doesn't start with a /")
        return raw

    def _ranged(self, value):
        number = _number(value)
        low = number if self.low is None else self.low
        high = number if self.high is None else self.high
        if not low <= number <= high:
            raise ValueError(f"is {value}, out of range")
        return value


class Schema(dict):
    """The keys of a file, by their dotted names, in its order."""

    def defaults(self):
        """The default of each key, by its dotted name."""
        return {name: copy.deepcopy(key.default) for name, key in self.items()}

    def check(self, given, where):
        """
        Read what an operator wrote: the values by dotted name, and a sentence for each error.
        ``where`` leads to ``given`` in the sentences.
        """
        found, errors = {}, []
        self._collect(given, (), where, found, errors)
        for name, key in self.items():
            if key.required and found.get(name) in (None, "", []) and not errors:
                errors.append(f"{where}{name} is missing: {key.text} Allowed: {key.allowed}.")
        return found, errors

    def _collect(self, given, path, where, found, errors):
        if not isinstance(given, dict):
            name = where + ".".join(path)
            errors.append(f"{name.rstrip('.')} is {given!r}: it should be a mapping of keys.")
            return
        for word, raw in given.items():
            here = (*path, str(word))
            name = ".".join(here)
            if name in self:
                try:
                    found[name] = self[name].value(raw)
                except ValueError as error:
                    errors.append(f"{where}{name} {error}. Allowed: {self[name].allowed}.")
            elif any(known.startswith(f"{name}.") for known in self):
                self._collect(raw, here, where, found, errors)
            else:
                errors.append(f"{where}{name} {self._unknown(name)}")

    def _unknown(self, name):
        """What to say of a key that doesn't exist."""
        for key in self.values():
            if name in key.renamed_from:
                return f"was renamed: write {key.name}."
        return f"is unknown.{nearest(name, self)}"


def nearest(word, known):
    """
    A hint at what a misspelled word may have meant.

    word
        What was written.
    known
        The words that exist.

    Returns `` Did you mean ...?``, or all words that exist if none is near.

    CLI Example:

    .. code-block:: bash

        salt-call --local schema.nearest storge '[storage, ttl]'
    """
    known = list(known)
    last = {name.rpartition(".")[2]: name for name in reversed(known)}
    found = difflib.get_close_matches(word, known, n=1) or [
        last[name] for name in difflib.get_close_matches(word.rpartition(".")[2], last, n=1)
    ]
    return f" Did you mean {found[0]}?" if found else f" There are: {', '.join(known)}."


def read(text, source):
    """
    Read a ``defaults.yaml``.

    text
        The file's content.
    source
        The file's name, for errors.

    Returns a :class:`Schema`: a dictionary from a key's dotted name to what is known of it, in
    the file's order. Raises ``ValueError`` if a key isn't described, or has a default that its
    description doesn't allow.

    CLI Example:

    .. code-block:: bash

        salt-call --local schema.read "$(cat salt/varnish/defaults.yaml)" defaults.yaml
    """
    root = yaml.compose(text, Loader=_LOADER)
    if root is None:
        return Schema()
    if not isinstance(root, yaml.MappingNode):
        raise SchemaError(f"{source}: should be a mapping of keys")
    content = yaml.load(text, Loader=_LOADER)  # noqa: S506 - one of the safe loaders
    found = Schema()
    for key in _walk(root, (), text.splitlines(), source, content):
        if key.name in found:
            raise SchemaError(f"{source}: {key.name} stands there twice")
        found[key.name] = key
    return found


def _walk(node, path, lines, source, content):
    """The keys below a mapping node."""
    for word, below in node.value:
        here = (*path, word.value)
        if word.value not in content:
            raise SchemaError(f"{source}: {'.'.join(here)} isn't text: put it in quotes")
        value = content[word.value]
        comment = _comment_above(lines, word.start_mark.line)
        bracket = re.search(r"\[([^\[\]]+)\]$", comment)
        if bracket:
            yield _key(here, comment[: bracket.start()].strip(), bracket[1].strip(), value, source)
        elif isinstance(below, yaml.MappingNode) and below.value:
            yield from _walk(below, here, lines, source, value)
        else:
            raise SchemaError(
                f"{source}, line {word.start_mark.line + 1}: right above {'.'.join(here)} there is "
                "no comment that ends with its type in brackets"
            )


def _comment_above(lines, number):
    found = []
    while number and lines[number - 1].lstrip().startswith("#"):
        number -= 1
        found.insert(0, lines[number].lstrip(" #").strip())
    return " ".join(found)


def _key(path, text, bracket, default, source):
    name = ".".join(path)
    where = f"{source}: {name}"
    allowed, _, olds = bracket.partition(", renamed from ")
    allowed, required, _ = allowed.partition(", required")
    if not text:
        raise SchemaError(f"{where} isn't described")
    if required and default is not None:
        raise SchemaError(f"{where} has a default, so it can't be required")
    if path[0] == "why":
        raise SchemaError(f"{where}: 'why' is the name of the arithmetic, not of a key")
    kind, of, choices, limits = _parsed(allowed, where)
    low, high = _limits(limits, of or kind, where)
    renamed_from = (old.strip() for old in olds.split(",") if old.strip())
    key = Key(
        name=name,
        text=text,
        bracket=allowed,
        default=default,
        kind=kind,
        of=of,
        choices=choices,
        low=low,
        high=high,
        required=bool(required),
        renamed_from=tuple(o if "." in o else ".".join((*path[:-1], o)) for o in renamed_from),
    )
    try:
        return key._replace(default=key.value(default))
    except ValueError as error:
        raise SchemaError(f"{where} {error}, which [{allowed}] doesn't allow") from error


def _parsed(allowed, where):
    """The kind, what it is of, the choices and the range of a bracket."""
    if allowed.startswith("one of "):
        return "choice", None, tuple(yaml.safe_load(f"[{allowed[len('one of ') :]}]")), ""
    kind, _, rest = allowed.partition(" ")
    if kind == "map" and not rest:
        return "map", None, (), ""
    of = None
    if kind in ("list", "map") and rest.startswith("of "):
        of, _, rest = rest[len("of ") :].partition(" ")
    if (of or kind) not in _SCALARS:
        raise SchemaError(f"{where}: [{allowed}] is no type")
    return kind, of, (), rest.strip()


def _limits(limits, kind, where):
    if not limits:
        return None, None
    low, dots, high = limits.partition("..")
    if not dots or kind not in _RANGED:
        raise SchemaError(f"{where}: {limits!r} is no range of {kind}")
    try:
        return tuple(_limit(limit, kind) for limit in (low, high))
    except ValueError as error:
        raise SchemaError(f"{where}: {limits!r} is no range of {kind}") from error


def _limit(text, kind):
    if not text:
        return None
    if kind in _MEASURES:
        return _number(_MEASURES[kind](text))
    return int(text) if kind == "int" else float(text)
