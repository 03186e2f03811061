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
from dataclasses import dataclass

import salt.utils.yamldumper
import yaml

# The word for a value that is computed from the hardware.
AUTO = "auto"

_SCALARS = ("bool", "int", "number", "string", "size", "duration", "path")
_RANGED = ("int", "number", "size", "duration")
_EXAMPLES = {"size": "512M or 8G", "duration": "30s, 500ms or 6h"}


class SchemaError(ValueError):
    """A ``defaults.yaml`` that doesn't describe its keys; our own mistake, not an operator's."""


class _Measure(str):
    """A number with a unit: prints in the largest unit that keeps it whole."""

    UNITS = {}  # unit -> factor, smallest unit first, as written in canonical form
    ALIASES = {}  # what else is understood on reading

    def __new__(cls, text):
        return super().__new__(cls, cls._canonical(cls._read(text)))

    @classmethod
    def of(cls, number):
        """The measure of a whole number of the smallest unit."""
        return cls(cls._canonical(int(number)))

    @classmethod
    def _read(cls, text):
        found = re.fullmatch(r"(\d+)\s*([A-Za-z]*)", str(text).strip())
        if found and not found[2] and int(found[1]) == 0:
            return 0
        unit = found and cls.ALIASES.get(found[2].lower(), found[2])
        if not found or unit not in cls.UNITS:
            raise ValueError(f"{text!r} has no unit of {', '.join(cls.UNITS)}")
        return int(found[1]) * cls.UNITS[unit]

    @classmethod
    def _canonical(cls, number):
        for unit, factor in reversed(cls.UNITS.items()):
            if number and number % factor == 0:
                return f"{number // factor}{unit}"
        return f"0{next(iter(cls.UNITS))}"

    @property
    def _number(self):
        return self._read(str(self))


class Size(_Measure):
    """An amount of memory or disk: ``512M``, ``64k``, ``8G``. Units are powers of 1024."""

    UNITS = {"B": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    ALIASES = {unit.lower(): unit for unit in UNITS}

    @property
    def bytes(self):
        """Whole bytes."""
        return self._number

    @property
    def k(self):
        """Whole kibibytes, rounded down."""
        return self._number >> 10

    @property
    def M(self):  # noqa: N802 - named as the unit is written
        """Whole mebibytes, rounded down."""
        return self._number >> 20

    @property
    def G(self):  # noqa: N802 - named as the unit is written
        """Whole gibibytes, rounded down."""
        return self._number >> 30


class Duration(_Measure):
    """
    A time: ``30s``, ``500ms``. Minutes, hours and days are understood but print as seconds, as
    daemons disagree on what an ``m`` is.
    """

    UNITS = {"ms": 1, "s": 1000}

    @classmethod
    def _read(cls, text):
        found = re.fullmatch(r"(\d+)\s*([mhd])", str(text).strip())
        if found:
            return int(found[1]) * {"m": 60, "h": 3600, "d": 86400}[found[2]] * 1000
        return super()._read(text)

    @property
    def ms(self):
        """Whole milliseconds."""
        return self._number

    @property
    def s(self):
        """Whole seconds, rounded up: a limit is never shorter than written."""
        return -(-self._number // 1000)


_MEASURES = {"size": Size, "duration": Duration}


def _represent(dumper, measure):
    return dumper.represent_str(str(measure))


# Salt's dumpers print the null of what they don't know; each keeps a table of its own.
for _name in ("OrderedDumper", "SafeOrderedDumper", "IndentedSafeOrderedDumper"):
    for _measure in _MEASURES.values():
        getattr(salt.utils.yamldumper, _name).add_representer(_measure, _represent)


@dataclass(frozen=True)
class Key:
    """One key of a schema."""

    path: tuple
    kind: str  # one of _SCALARS, "list", "map", "choice"
    of: str  # type of the elements of a list or a map; None for a free-form map
    choices: tuple
    low: object
    high: object
    default: object
    renamed_from: tuple
    text: str  # what the comment says
    bracket: str  # what is allowed, as written

    @property
    def name(self):
        """The key's dotted name."""
        return ".".join(self.path)

    @property
    def auto(self):
        """Whether the value may be computed."""
        return self.default == AUTO

    @property
    def allowed(self):
        """What is allowed, for an error."""
        words = self.bracket
        for kind, example in _EXAMPLES.items():
            words = re.sub(rf"\b{kind}\b", f"{kind} such as {example}", words, count=1)
        return words + (", or auto" if self.auto else "")


def read(text, source):
    """
    Read a ``defaults.yaml``.

    text
        The file's content.
    source
        The file's name, for errors.

    Returns a dictionary from a key's dotted name to what is known of it, in the file's order.
    Raises ``ValueError`` if a key isn't described, or has a default that its description doesn't
    allow.

    CLI Example:

    .. code-block:: bash

        salt-call --local schema.read '"# Port. [int 1..65535]\nport: 80"' defaults.yaml
    """
    lines = text.splitlines()
    root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise SchemaError(f"{source}: should be a mapping of keys")
    keys = {}
    for key in _walk(root, (), lines, source, yaml.safe_load(text)):
        if key.path[0] == "why":
            raise SchemaError(f"{source}: 'why' is the name of the arithmetic, not of a key")
        keys[key.name] = key
    return keys


def defaults(keys):
    """
    The default of each key.

    keys
        What :func:`read` returned.

    Returns a dictionary from a key's dotted name to its value.

    CLI Example:

    .. code-block:: bash

        salt-call --local settings.explain varnish
    """
    return {name: copy.deepcopy(key.default) for name, key in keys.items()}


def values(keys, given, source, prefix=""):
    """
    Read what an operator wrote.

    keys
        What :func:`read` returned.
    given
        The mapping that the operator wrote, nested as the schema is.
    source
        Where it stands, for errors.
    prefix
        The path that leads to it there.

    Returns the values found, by dotted name, and a list of sentences, one for each error.

    CLI Example:

    .. code-block:: bash

        salt '*' settings.check
    """
    found, errors = {}, []
    _collect(keys, given, (), f"{source}: {prefix}", found, errors)
    return found, errors


def nested(flat):
    """
    Nest values that are known by their dotted names.

    flat
        A dictionary from dotted names to values.

    Returns a dictionary of dictionaries.

    CLI Example:

    .. code-block:: bash

        salt-call --local schema.nested '{"probe.window": 5}'
    """
    root = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        branch = root
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[last] = copy.deepcopy(value)
    return root


def measured(key, value):
    """
    A value as it is handed out, if the key's description allows it.

    key
        A value of what :func:`read` returned.
    value
        What was written or computed.

    Returns the value. Raises ``ValueError`` if it isn't allowed; the message says what is wrong.

    CLI Example:

    .. code-block:: bash

        salt '*' settings.check
    """
    if value is None:
        if key.default is None:
            return None
        raise ValueError("is empty")
    if value == AUTO and key.auto:
        return AUTO
    if key.kind == "choice":
        if value not in key.choices:
            raise ValueError(f"is {value!r}")
        return value
    if key.kind == "list":
        if not isinstance(value, list):
            raise ValueError(f"is {value!r}, not a list")
        return [_scalar(key, key.of, element) for element in value]
    if key.kind == "map":
        if not isinstance(value, dict):
            raise ValueError(f"is {value!r}, not a mapping")
        return {str(name): _element(key, name, element) for name, element in value.items()}
    return _scalar(key, key.kind, value)


def _element(key, name, value):
    if value is None:  # takes an element of the default away
        return None
    if key.of:
        return _scalar(key, key.of, value)
    if isinstance(value, (dict, list)):
        raise ValueError(f"has the nested value {value!r} at {name}")
    return value


def _scalar(key, kind, value):
    """A scalar of a kind, inside the key's range."""
    if kind in _MEASURES:
        if isinstance(value, bool) or (isinstance(value, int) and value != 0):
            raise ValueError(f"is {value!r}, without a unit")
        try:
            value = _MEASURES[kind](value)
        except ValueError as error:
            raise ValueError(f"is {value!r}") from error
        number = value._number
    elif kind == "bool":
        if not isinstance(value, bool):
            raise ValueError(f"is {value!r}")
        return value
    elif kind in ("int", "number"):
        wanted = int if kind == "int" else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise ValueError(f"is {value!r}")
        number = value
    else:
        if not isinstance(value, str):
            raise ValueError(f"is {value!r}, not text: put it in quotes")
        if kind == "path" and not value.startswith("/"):
            raise ValueError(f"is {value!r}, which doesn't start with a /")
        return value
    for bound, outside in ((key.low, -1), (key.high, 1)):
        if bound is not None and (number - bound) * outside > 0:
            raise ValueError(f"is {value}, out of range")
    return value


def _collect(keys, given, path, where, found, errors):
    """Walk what an operator wrote beside the schema."""
    if not isinstance(given, dict):
        name = ".".join(path)
        errors.append(f"{where}{name} is {given!r}: it should be a mapping of keys.")
        return
    for word, value in given.items():
        here = (*path, str(word))
        name = ".".join(here)
        if name in keys:
            try:
                found[name] = measured(keys[name], value)
            except ValueError as error:
                errors.append(f"{where}{name} {error}. Allowed: {keys[name].allowed}.")
        elif any(key.path[: len(here)] == here for key in keys.values()):
            _collect(keys, value, here, where, found, errors)
        else:
            errors.append(f"{where}{name} {_unknown(keys, here, where)}")


def _unknown(keys, path, where):
    """What to say of a key that doesn't exist."""
    name = ".".join(path)
    for key in keys.values():
        if name in key.renamed_from:
            return f"was renamed: write {_leaf(where)}{key.name}."
    close = difflib.get_close_matches(name, keys, n=1, cutoff=0.6) or [
        candidate
        for candidate, key in keys.items()
        if difflib.get_close_matches(path[-1], [key.path[-1]], n=1, cutoff=0.75)
    ]
    near = f" Did you mean {_leaf(where)}{close[0]}?" if close else ""
    return f"is unknown.{near} Known: {', '.join(keys)}."


def _leaf(where):
    return where.rpartition(": ")[2]


def _walk(node, path, lines, source, data):
    """The keys below a mapping node."""
    for word, value in node.value:
        here = (*path, word.value)
        comment = _comment_above(lines, word.start_mark.line)
        bracket = re.search(r"\[([^\[\]]+)\]$", comment)
        content = data[yaml.safe_load(word.value)]
        if bracket:
            text = comment[: bracket.start()].strip()
            yield _key(here, bracket[1].strip(), text, content, source)
        elif isinstance(value, yaml.MappingNode) and value.value:
            yield from _walk(value, here, lines, source, content)
        else:
            raise SchemaError(
                f"{source}, line {word.start_mark.line + 1}: {'.'.join(here)} has no comment "
                "right above it that ends with its type in brackets"
            )


def _comment_above(lines, number):
    found = []
    while number and lines[number - 1].lstrip().startswith("#"):
        number -= 1
        found.insert(0, lines[number].lstrip().lstrip("#").strip())
    return " ".join(found)


def _key(path, bracket, text, default, source):
    where = f"{source}: {'.'.join(path)}"
    if not text:
        raise SchemaError(f"{where} is not described")
    allowed, _, renamed = (part.strip() for part in bracket.partition("renamed from "))
    allowed = allowed.rstrip(",")
    kind, of, choices, limits = _parse(allowed, where)
    low, high = _range(limits, of or kind, where)
    olds = [old.strip() for old in renamed.split(",") if old.strip()]
    key = Key(
        path=path,
        kind=kind,
        of=of,
        choices=choices,
        low=low,
        high=high,
        default=default,
        renamed_from=tuple(old if "." in old else ".".join((*path[:-1], old)) for old in olds),
        text=text,
        bracket=allowed,
    )
    try:
        default = measured(key, default)
    except ValueError as error:
        raise SchemaError(f"{where} {error}, which [{allowed}] doesn't allow") from error
    return Key(**{**key.__dict__, "default": default})


def _parse(allowed, where):
    """The kind, the kind of the elements, the choices and the range of a bracket."""
    if allowed.startswith("one of "):
        choices = [yaml.safe_load(choice) for choice in allowed[len("one of ") :].split(",")]
        return "choice", None, tuple(choices), ""
    kind, _, rest = allowed.partition(" ")
    if kind == "map" and not rest:
        return "map", None, (), ""
    of = None
    if kind in ("list", "map") and rest.startswith("of "):
        of, _, rest = rest[len("of ") :].partition(" ")
    if (of or kind) not in _SCALARS:
        raise SchemaError(f"{where}: [{allowed}] is no type")
    return kind, of, (), rest.strip()


def _range(limits, kind, where):
    if not limits:
        return None, None
    low, dots, high = limits.partition("..")
    if kind not in _RANGED or not dots:
        raise SchemaError(f"{where}: {limits!r} is no range of a {kind}")
    try:
        return tuple(_bound(limit, kind) for limit in (low, high))
    except ValueError as error:
        raise SchemaError(f"{where}: {limits!r} is no range of a {kind}: {error}") from error


def _bound(limit, kind):
    if not limit:
        return None
    if kind in _MEASURES:
        return _MEASURES[kind](limit)._number
    return int(limit) if kind == "int" else float(limit)
