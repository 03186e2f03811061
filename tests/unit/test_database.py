"""
What of the database tier can be told without a server: how passwords and names are written, and
when the states refuse. The states get a small Salt that answers from one dictionary.
"""

import importlib.util
import pathlib

import pytest
from salt.exceptions import CommandExecutionError

ROOT = pathlib.Path(__file__).parents[2]


def load(path, **dunders):
    spec = importlib.util.spec_from_file_location(
        f"under_test_{path.parent.name}_{path.stem}", path
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module).update(dunders)
    return module


@pytest.fixture
def database():
    return load(ROOT / "_modules/database.py", __opts__={"id": "db-1.example"})


def state(found, peers=(), others=(), test=False):
    """The state module on a host db1, and what it did."""
    done = []
    functions = {
        "database.status": lambda: found,
        "database.peers": lambda: list(peers),
        "database.others": lambda: list(others),
        "database.cluster": lambda: {"version": 17, "name": "main"},
        "database.create": lambda: done.append("create"),
        "database.clone": lambda: done.append("clone") or {"result": "copied"},
        "database.rejoin": lambda: done.append("rejoin") or {"result": "rewound"},
        "database.source": lambda: {"id": "db2", "address": "10.0.0.2"},
        "database.wait_for_replicas": lambda: found.get("suspended", False),
        "database.pending": lambda: found.get("restart_pending"),
    }
    opts = {"id": "db1", "test": test}
    return load(ROOT / "_states/database.py", __salt__=functions, __opts__=opts), done


WRITER = {"id": "db2", "answers": True, "in_recovery": False}
REPLICA = {"id": "db2", "answers": True, "in_recovery": True}
SILENT = {"id": "db2", "answers": False, "reason": "no route"}


def test_the_verifier_is_what_postgresql_stores(database):
    # RFC 7677, section 3: user "user", password "pencil".
    salt = bytes.fromhex("5b6d99689d12358eeca04b141236fa81")
    stored = database.verifier("pencil", salt, 4096)
    assert stored == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"
        "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )


@pytest.mark.parametrize("password", ["pencil", "ünïcode ✓", "quo'te \"\\", "a:b$c"])
def test_a_password_matches_only_itself(database, password):
    stored = database.verifier(password)
    assert database.matches(password, stored)
    assert not database.matches(password + "x", stored)
    assert password not in stored


@pytest.mark.parametrize("stored", [None, "", "md5abc", "SCRAM-SHA-256$x:y$z", "a$b$c$d"])
def test_what_is_no_verifier_matches_nothing(database, stored):
    assert not database.matches("pencil", stored)


def test_names_and_texts_are_quoted(database):
    assert database.identifier('we"ird; DROP') == '"we""ird; DROP"'
    assert database.literal("it's") == "'it''s'"
    with pytest.raises(CommandExecutionError, match="NUL"):
        database.identifier("a\0b")


def test_a_slot_has_only_letters_that_postgresql_allows(database):
    assert database.slot() == "host_db_1_example"
    assert database.slot("DB2") == "host_db2"


def test_the_first_primary_is_created():
    module, done = state({"state": "absent"}, peers=[SILENT])
    assert module.primary("x")["result"] is True
    assert done == ["create"]


def test_test_mode_creates_nothing():
    module, done = state({"state": "absent"}, test=True)
    result = module.primary("x")
    assert result["result"] is None
    assert result["changes"]
    assert not done


@pytest.mark.parametrize(
    ("found", "peers", "others", "word"),
    [
        ({"state": "absent"}, [], ["15/main"], "pg_upgradecluster 15 main"),
        ({"state": "absent"}, [], ["17/old"], "pg_renamecluster 17 old main"),
        ({"state": "absent"}, [WRITER], [], "db2 takes the writes"),
        ({"state": "absent"}, [REPLICA], [], "salt-run database.promote db2"),
        ({"state": "replica"}, [REPLICA], [], "salt-run database.promote db1"),
        ({"state": "replica"}, [WRITER], [], "postgres.primary: db2"),
        ({"state": "stopped", "fenced": "db2 took over"}, [WRITER], [], "fenced"),
        ({"state": "stopped"}, [WRITER], [], "db2 takes the writes"),
    ],
)
def test_no_primary_beside_another_ones_data(found, peers, others, word):
    module, done = state(found, peers, others)
    result = module.primary("x")
    assert result["result"] is False
    assert word in result["comment"]
    assert not result["changes"]
    assert not done


def test_a_running_primary_is_left_alone():
    module, done = state({"state": "primary"}, [REPLICA])
    result = module.primary("x")
    assert (result["result"], result["changes"], done) == (True, {}, [])


@pytest.mark.parametrize(
    ("found", "step"),
    [({"state": "absent"}, "clone"), ({"state": "stopped", "fenced": "db2"}, "rejoin")],
)
def test_a_host_becomes_a_replica(found, step):
    module, done = state(found, [WRITER])
    assert module.replica("x")["result"] is True
    assert done == [step]


def test_a_host_that_takes_writes_is_never_overwritten():
    module, done = state({"state": "primary"}, [WRITER])
    result = module.replica("x")
    assert result["result"] is False
    assert "salt-run database.rejoin db1" in result["comment"]
    assert not done


def test_a_pending_restart_is_told_and_is_no_change():
    module, _done = state({"state": "primary", "restart_pending": ["shared_buffers"]})
    result = module.settled("x")
    assert (result["result"], result["changes"]) == (True, {})
    assert "shared_buffers" in result["warnings"][0]


def test_commits_wait_for_a_replica_again_and_that_is_a_change():
    module, _done = state({"state": "primary", "suspended": True})
    assert module.settled("x")["changes"]["commits"]["new"] == "wait for a replica"
    module, _done = state({"state": "primary", "suspended": True}, test=True)
    assert module.settled("x")["result"] is None
