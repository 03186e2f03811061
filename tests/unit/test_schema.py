"""Reads defaults files as schemas, and what operators write by them."""

import copy
import json
import pickle

import pytest
import salt.payload
import salt.utils.yaml
import schema
from hypothesis import given
from hypothesis import strategies as st

TEXT = """\
# The web accelerator.

# Storage for cached
# answers, in RAM. [size 16M..64G, renamed from memory]
storage: auto
# Port. [int 1..65535]
port: 6081
# How long. [duration 0s..1d]
ttl: 20s
# On or off. [bool]
esi: false
# Which way. [one of roundrobin, leastconn, 3]
balance: roundrobin
# A ratio. [number 0..1]
ratio: 0.5
# Names. [list of string]
names: [a]
# Ports. [list of int 1..10]
ports: [1]
# Anything. [map]
environment: {A: 1}
# Sizes by name. [map of size]
limits: {}
# Where. [path]
folder: /srv
# A name, if any. [string]
primary: null
probe:
  # Between two looks. [duration 1s.., renamed from every, period]
  interval: 5s
  deeper:
    # Looks. [int 1..64]
    window: 5
"""
SCHEMA = schema.read(TEXT, "varnish/defaults.yaml")


def errors_of(given):
    return SCHEMA.check(given, "overrides.yaml: varnish.")[1]


def error_of(given):
    (error,) = errors_of(given)
    return error


def test_reads_every_key():
    assert list(SCHEMA) == [
        *("storage", "port", "ttl", "esi", "balance", "ratio", "names", "ports", "environment"),
        *("limits", "folder", "primary", "probe.interval", "probe.deeper.window"),
    ]
    storage = SCHEMA["storage"]
    assert storage.text == "Storage for cached answers, in RAM."
    assert (storage.kind, storage.low, storage.high) == ("size", 16 << 20, 64 << 30)
    assert storage.auto
    assert storage.renamed_from == ("memory",)
    assert SCHEMA["probe.interval"].renamed_from == ("probe.every", "probe.period")
    assert SCHEMA["balance"].choices == ("roundrobin", "leastconn", 3)
    assert SCHEMA.defaults()["ttl"].ms == 20000


def test_accepts_what_is_allowed():
    written = {
        "storage": "512M",
        "port": 80,
        "ttl": "6h",
        "esi": True,
        "balance": 3,
        "ratio": 1,
        "names": ["b", "c"],
        "ports": [2, 3],
        "environment": {"B": "x", "A": None},
        "limits": {"small": "1k"},
        "folder": "/var",
        "primary": None,
        "probe": {"interval": "2s", "deeper": {"window": 8}},
    }
    found, errors = SCHEMA.check(written, "")
    assert not errors
    assert found["storage"].M == 512
    assert found["ttl"] == "21600s"
    assert found["probe.deeper.window"] == 8
    assert found["limits"]["small"].bytes == 1024


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ({"storge": "1G"}, "overrides.yaml: varnish.storge is unknown. Did you mean storage?"),
        ({"interval": "1s"}, "varnish.interval is unknown. Did you mean probe.interval?"),
        ({"probe": {"windw": 1}}, "varnish.probe.windw is unknown. Did you mean probe.deeper.w"),
        ({"zzz": 1}, "varnish.zzz is unknown. There are: storage, port"),
        ({"memory": "1G"}, "varnish.memory was renamed: write storage."),
        ({"probe": {"every": "1s"}}, "varnish.probe.every was renamed: write probe.interval."),
        ({"storage": 512}, "storage is 512, which is no size. Allowed: size 16M..64G, such as"),
        ({"storage": "big"}, "storage is 'big', which is no size. "),
        ({"storage": "1M"}, "storage is 1M, out of range. Allowed: size 16M..64G"),
        ({"storage": "65G"}, "storage is 65G, out of range."),
        ({"storage": "1.5G"}, "storage is '1.5G', which is no size. "),
        ({"storage": None}, "storage is empty. Allowed: size 16M..64G, such as 512M, or auto."),
        ({"ttl": "auto"}, "ttl is 'auto', which is no duration. "),
        ({"ttl": 20}, "ttl is 20, which is no duration. Allowed: duration 0s..1d, such as 30s."),
        ({"ttl": "2d"}, "ttl is 172800s, out of range. "),
        ({"port": "80"}, "port is '80'. Allowed: int 1..65535."),
        ({"port": 0}, "port is 0, out of range. Allowed: int 1..65535."),
        ({"port": True}, "port is True. "),
        ({"port": 80.0}, "port is 80.0. "),
        ({"esi": "yes"}, "esi is 'yes'. Allowed: bool."),
        ({"esi": 1}, "esi is 1. "),
        ({"balance": "random"}, "balance is 'random'. Allowed: one of roundrobin, leastconn, 3."),
        ({"ratio": 1.1}, "ratio is 1.1, out of range. Allowed: number 0..1."),
        ({"names": "a"}, "names is 'a', not a list. Allowed: list of string."),
        ({"names": [1]}, "names is 1, not text (put it in quotes). "),
        ({"ports": [11]}, "ports is 11, out of range. Allowed: list of int 1..10."),
        ({"environment": [1]}, "environment is [1], not a mapping. "),
        ({"environment": {"A": {"B": 1}}}, "environment is nested at A: {'B': 1}. "),
        ({"limits": {"small": 1}}, "limits is 1, which is no size. Allowed: map of size, such"),
        ({"folder": "srv"}, "folder is 'srv', which doesn't start with a /. Allowed: path."),
        ({"probe": "5s"}, "varnish.probe is '5s': it should be a mapping of keys."),
        ("x", "overrides.yaml: varnish is 'x': it should be a mapping of keys."),
    ],
)
def test_says_what_is_wrong(written, sentence):
    assert sentence in error_of(written)


def test_tells_all_errors_at_once():
    assert len(errors_of({"storge": 1, "port": "x", "probe": {"interval": 3}, "ttl": "1s"})) == 3


def test_a_required_key():
    needed = schema.read("# URL. [string, required]\nrepository: null\n", "site.yaml")
    assert needed.check({}, "sites.yaml: sites.news.")[1] == [
        "sites.yaml: sites.news.repository is missing: URL. Allowed: string."
    ]
    assert needed.check({"repository": ""}, "")[1]
    assert needed.check({"repository": "x"}, "") == ({"repository": "x"}, [])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("port: 1", "f, line 1: right above port there is no comment"),
        ("# Port. [int]\n\nport: 1", "right above port there is no comment"),
        ("# Port.\nport: 1", "right above port there is no comment"),
        ("# [int]\nport: 1", "f: port isn't described"),
        ("# Port. [whole]\nport: 1", "f: port: [whole] is no type"),
        ("# Port. [list]\nport: []", "f: port: [list] is no type"),
        ("# Port. [int 1-5]\nport: 1", "f: port: '1-5' is no range of int"),
        ("# Port. [int a..b]\nport: 1", "f: port: 'a..b' is no range of int"),
        ("# Port. [string 1..2]\nport: x", "f: port: '1..2' is no range of string"),
        ("# Port. [int 1..5]\nport: 6", "f: port is 6, out of range, which [int 1..5] doesn't"),
        ("# Port. [int]\nport: x", "f: port is 'x', which [int] doesn't allow"),
        ("# Port. [int]\nport: 1\n# Port. [int]\nport: 2", "f: port stands there twice"),
        ("# Port. [int, required]\nport: 1", "f: port has a default, so it can't be required"),
        ("# Why. [string]\nwhy: x", "f: why: 'why' is the name of the arithmetic"),
        ("# Port. [int]\n80: 1", "f: 80 isn't text: put it in quotes"),
        ("- 1", "f: should be a mapping of keys"),
    ],
)
def test_a_schema_that_says_too_little(text, sentence):
    with pytest.raises(schema.SchemaError) as error:
        schema.read(text, "f")
    assert sentence in str(error.value)


def test_an_empty_schema():
    assert schema.read("# Nothing to set.\n", "f") == {}


def test_maps_are_merged_and_lists_replaced():
    environment, names = SCHEMA["environment"], SCHEMA["names"]
    assert environment.merged({"A": 1, "B": 2}, {"B": 3, "A": None}) == {"B": 3}
    assert names.merged(["a"], ["b"]) == ["b"]


@pytest.mark.parametrize(
    ("written", "printed", "number"),
    [
        ("512M", "512M", 512 << 20),
        ("1024M", "1G", 1 << 30),
        ("1536m", "1536M", 1536 << 20),
        ("64K", "64k", 64 << 10),
        ("1000B", "1000B", 1000),
        ("0", "0B", 0),
        ("0G", "0B", 0),
        (" 2G ", "2G", 2 << 30),
    ],
)
def test_sizes(written, printed, number):
    size = schema.Size(written)
    assert (str(size), size.bytes, size.k, size.M, size.G) == (
        *(printed, number),
        *(number >> 10, number >> 20, number >> 30),
    )


@pytest.mark.parametrize(
    ("written", "printed", "ms", "s"),
    [
        ("30s", "30s", 30000, 30),
        ("500ms", "500ms", 500, 1),
        ("1500ms", "1500ms", 1500, 2),
        ("2000ms", "2s", 2000, 2),
        ("5m", "300s", 300_000, 300),
        ("6h", "21600s", 21_600_000, 21600),
        ("1d", "86400s", 86_400_000, 86400),
        ("0", "0s", 0, 0),
    ],
)
def test_durations(written, printed, ms, s):
    duration = schema.Duration(written)
    assert (str(duration), duration.ms, duration.s) == (printed, ms, s)


@given(st.integers(0, 1 << 60), st.sampled_from("BkMG"))
def test_what_a_size_prints_is_the_same_size(number, unit):
    size = schema.Size(f"{number}{unit}")
    assert schema.Size(str(size)) == size
    assert size.bytes == number * {"B": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}[unit]


@pytest.mark.parametrize("measure", [schema.Size("64k"), schema.Duration("500ms")])
def test_measures_survive_everything_that_salt_writes(measure):
    plain = {"value": str(measure)}
    told = {"value": measure}
    assert json.loads(json.dumps(told)) == plain
    assert salt.payload.loads(salt.payload.dumps(told)) == plain
    assert salt.utils.yaml.safe_load(salt.utils.yaml.safe_dump(told)) == plain
    indented = salt.utils.yaml.get_dumper("IndentedSafeOrderedDumper")
    assert salt.utils.yaml.safe_load(salt.utils.yaml.dump(told, Dumper=indented)) == plain
    for same in (copy.deepcopy(measure), copy.copy(measure), pickle.loads(pickle.dumps(measure))):
        assert same == measure
        assert type(same) is type(measure)
