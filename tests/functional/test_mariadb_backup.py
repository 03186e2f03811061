"""Backups of MariaDB with a primary, a replica and restic: made, verified, damaged, restored."""

import gzip
import json
import os
import stat
import subprocess
import sys
import time
import types

import pytest

from tests.functional import backup_program, mariadb
from tests.functional.box import wait_for

SITE = "paper"
# The letters are kept, but nobody whom they are from.
NOBODY = {name: None for name in backup_program.RULES if name.startswith("person.")}
NOBODY |= {"person": "empty"}
# The trigger would leave a real address, if it were still there.
PEOPLE = """
CREATE TABLE country (code char(2) PRIMARY KEY, name text);
CREATE TABLE person (id int AUTO_INCREMENT PRIMARY KEY, name varchar(60) NOT NULL,
    email varchar(100) NOT NULL UNIQUE, password varchar(128), phone varchar(20) NOT NULL,
    about text, tags json, born date, score int, country char(2),
    FOREIGN KEY (country) REFERENCES country (code));
CREATE TABLE letter (id int AUTO_INCREMENT PRIMARY KEY, sender varchar(100), text text,
    FOREIGN KEY (sender) REFERENCES person (email));
CREATE TABLE session (`key` varchar(80) PRIMARY KEY, data text);
CREATE TRIGGER told AFTER UPDATE ON person FOR EACH ROW
    INSERT INTO session VALUES (uuid(), OLD.email);
INSERT INTO country VALUES ('de', 'Germany');
INSERT INTO person (name, email, password, phone, about, tags, born, score, country)
SELECT concat('Given Name', seq), concat('real', seq, '@mail.test'), concat('secret', seq),
    concat('030-', seq), repeat('Grew up near the sea. ', 8),
    json_array(concat('real', seq, '@mail.test')), '1990-01-01', seq, 'de' FROM seq_1_to_500;
INSERT INTO letter (sender, text) SELECT email, 'Hello,\\nreal7@mail.test told me.' FROM person;
INSERT INTO letter (text) VALUES ('Guess who.');
INSERT INTO session VALUES ('k', 'real1@mail.test');
"""


@pytest.fixture(scope="module")
def pair():
    with mariadb.pair() as found:
        found.primary.sql(f"CREATE DATABASE {SITE}")
        yield found


@pytest.fixture
def program(pair, tmp_path, monkeypatch):
    """saltern-backup, told of the pair; its log is being received."""
    found = backup_program.load(monkeypatch, "backup", "mariadb")
    module = found.mariadb_backup
    port = pair.primary.port
    hosts = [{"id": "m1", "address": "127.0.0.1"}, {"id": "m2", "address": "127.0.0.2"}]
    files = {
        "plan.json": json.dumps({"hosts": hosts, "port": port, "sites": {SITE: SITE}}),
        "login.cnf": "[client]\nuser=backup\npassword=pw\n",
        "passphrase": "a passphrase\n",
        "fetch": "#!/bin/sh\ncase $1 in *.1) at=m1;; *) at=m2;; esac\n"
        f"at={pair.primary.folder.parent}/$at\nwork=$(mktemp -d)\n"
        "mariadb-backup --no-defaults --backup --stream=xbstream --datadir=$at/data "
        "--socket=$at/socket --user=root --target-dir=$work 2>/dev/null\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "fetch").chmod(0o755)
    (tmp_path / "login.cnf").chmod(stat.S_IRUSR)
    for name, value in {
        "PLAN": tmp_path / "plan.json",
        "LOGIN": str(tmp_path / "login.cnf"),
        "FETCH": str(tmp_path / "fetch"),
        "LOG": tmp_path / "log",
        "SCRATCH": tmp_path / "s",
        "OWNER": "root",
        "FIRST_WAIT": 0,
    }.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(found, "PASSPHRASE", str(tmp_path / "passphrase"))
    monkeypatch.setattr(found, "STATE", tmp_path)
    receiver = receiving(tmp_path)
    wait_for(lambda: list((tmp_path / "log").glob("1/binlog.*")), what="the log")
    yield found
    receiver.kill()
    receiver.wait()


def receiving(folder):
    """The module as the program that receives the log."""
    code = (
        "import pathlib, sys, mariadb_backup as m; folder = pathlib.Path(sys.argv[1])\n"
        "m.PLAN, m.LOGIN, m.LOG = folder / 'plan.json', str(folder / 'login.cnf'), folder / 'log'\n"
        "m.receive()"
    )
    path = {"PYTHONPATH": str(backup_program.SALT / "mariadb/files")}
    return subprocess.Popen([sys.executable, "-c", code, folder], env={**os.environ, **path})


@pytest.fixture
def general(tmp_path):
    repository = str(tmp_path / "repository")
    return {"databases": [{"id": "db1"}], "dumps": repository, "keep_days": 14, "s3": None}


@pytest.fixture
def rows(pair):
    """500 rows, and what is written later."""
    sql = pair.primary.sql
    sql(f"DROP TABLE IF EXISTS {SITE}.post")
    sql(f"CREATE TABLE {SITE}.post (id INT AUTO_INCREMENT PRIMARY KEY, words TEXT)")
    sql(f"USE {SITE}; INSERT INTO post (words) SELECT uuid() FROM seq_1_to_500")
    wait_for(lambda: pair.replica.sql(f"SELECT count(*) FROM {SITE}.post") == "500", what="replica")
    return lambda where=SITE: int(sql(f"SELECT count(*) FROM {where}.post"))


def options(**given):
    return types.SimpleNamespace(**{"database": SITE, "table": None, "time": None, **given})


def moment(sql):
    """A second that has begun, as the operator writes it; and the next has begun, too."""
    now = sql("SELECT date_format(utc_timestamp() + INTERVAL 1 SECOND, '%Y-%m-%d %H:%i:%s+00')")
    time.sleep(2.1)
    return now


def test_a_backup_is_verified_against_the_replica(program, pair, general, rows):
    module = program.mariadb_backup
    made = module.full(general, options())
    assert made["from"] == "m2"
    # What the states do for a new app host is in the log, too.
    pair.primary.sql(f"GRANT ALL ON {SITE}.* TO later@'10.0.0.9' IDENTIFIED BY 'pw'")
    pair.primary.sql(f"USE {SITE}; INSERT INTO post (words) SELECT uuid() FROM seq_1_to_50")
    done = module.verify(general, options())
    assert (done["compared_with"], done["rows"]) == ("m2", 550)
    assert not module.SCRATCH.exists()
    wait_for(
        lambda: (
            pair.replica.sql("SELECT @@gtid_slave_pos")
            == pair.primary.sql("SELECT @@gtid_binlog_pos")
        ),
        what="the replica goes on",
    )


def test_a_backup_that_differs_is_told(program, pair, general, rows):
    module = program.mariadb_backup
    module.full(general, options())
    # Written past the log, as a fault of the disk or of a hand would.
    pair.replica.sql(f"SET sql_log_bin = 0; UPDATE {SITE}.post SET words = 'x' WHERE id = 7")
    try:
        with pytest.raises(program.FailedError, match=r"the restored backup differs: paper.post"):
            module.verify(general, options())
    finally:
        words = pair.primary.sql(f"SELECT words FROM {SITE}.post WHERE id = 7")
        pair.replica.sql(
            f"SET sql_log_bin = 0; UPDATE {SITE}.post SET words = '{words}' WHERE id=7"
        )


def test_a_dropped_table_comes_back_to_the_second(program, pair, general, rows):
    module, sql = program.mariadb_backup, pair.primary.sql
    module.full(general, options())
    sql(f"USE {SITE}; INSERT INTO post (words) SELECT uuid() FROM seq_1_to_30")
    before = moment(sql)
    sql(f"DELETE FROM {SITE}.post WHERE id < 100")
    sql(f"DROP TABLE {SITE}.post")
    done = module.extract(general, options(table="post", time=before))
    assert done == {"database": SITE, "on": "m1", "table": "post", "rows": 530}
    assert rows() == 530


def test_what_lives_is_never_overwritten(program, pair, general, rows):
    module, sql = program.mariadb_backup, pair.primary.sql
    module.full(general, options())
    before = moment(sql)
    sql(f"DELETE FROM {SITE}.post WHERE id <= 400")
    one = module.extract(general, options(table="post", time=before))
    time.sleep(1)
    whole = module.extract(general, options())
    assert rows() == 100
    assert one["database"].startswith(f"{SITE}_restored_")
    assert (rows(one["database"]), rows(whole["database"])) == (500, 100)


def test_a_copy_that_breaks_off_counts_for_nothing(program, general, rows, tmp_path):
    module = program.mariadb_backup
    whole = (tmp_path / "fetch").read_text()
    (tmp_path / "fetch").write_text(whole.rstrip() + " | head -c 2000000\n")
    with pytest.raises(program.FailedError, match="m2 broke its copy off"):
        module.full(general, options())
    assert module.backups(general) == []
    with pytest.raises(program.FailedError, match="there is no backup"):
        module.verify(general, options())


def test_a_damaged_backup_is_told(program, general, rows, tmp_path):
    module = program.mariadb_backup
    module.full(general, options())
    packs = sorted((tmp_path / "repository/data").glob("*/*"), key=lambda p: p.stat().st_size)
    damaged = bytearray(packs[-1].read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    packs[-1].chmod(0o600)
    packs[-1].write_bytes(damaged)
    with pytest.raises(program.FailedError, match="restic dump"):
        module.verify(general, options())


def test_unknown_names_are_refused(program, general, rows):
    module = program.mariadb_backup
    module.full(general, options())
    with pytest.raises(program.FailedError, match="there are paper"):
        module.extract(general, options(database="papier"))
    with pytest.raises(program.FailedError, match="has no table nothing"):
        module.extract(general, options(table="nothing"))
    with pytest.raises(program.FailedError, match="no backup from before"):
        module.extract(general, options(time="2020-01-01 00:00:00+00"))


@pytest.fixture
def people(program, pair, general, tmp_path, monkeypatch):
    """A database of people, in a backup; makes the copy of it, with changed rules."""
    module = program.mariadb_backup
    monkeypatch.setattr(program, "ANONYMISED", tmp_path / "anonymised")
    pair.primary.sql("DROP DATABASE IF EXISTS club; CREATE DATABASE club; USE club;" + PEOPLE)
    module.full(general, options())
    told = json.loads(module.PLAN.read_text())

    def copy(**changed):
        words = {name: word for name, word in (backup_program.RULES | changed).items() if word}
        module.PLAN.write_text(json.dumps(told | {"anonymise": {"club": words}}))
        made = module.anonymise(general, options())["databases"]["club"]
        return made, gzip.open(made["file"], "rt").read()

    yield copy
    pair.primary.sql("DROP DATABASE club; DROP DATABASE IF EXISTS loaded")


def test_a_copy_for_development_holds_no_person(people, pair):
    made, dump = people()
    for gone in ("mail.test", "Given Name", "030-", "secret1", "near the sea"):
        assert gone not in dump
    assert made["addresses_removed"] == 500
    sql = pair.primary.sql
    sql("CREATE DATABASE loaded")
    load = ["mariadb", "--no-defaults", f"--socket={pair.primary.socket}", "loaded"]
    subprocess.run(load, input=dump, text=True, check=True)
    # What belonged together still does, and what tells of nobody is as it was.
    joined = "FROM loaded.person p JOIN loaded.letter l ON l.sender = p.email"
    assert sql(f"SELECT count(*), sum(score = p.id) {joined}") == "500\t500"
    assert sql("SELECT count(*) FROM loaded.letter WHERE sender IS NULL") == "1"
    assert sql("SELECT count(*) FROM loaded.session") == "0"
    facts = "count(DISTINCT name), count(DISTINCT email), max(born), max(phone), count(tags)"
    assert sql(f"SELECT {facts} FROM loaded.person") == "500\t500\t1990-01-01\t\t0"
    assert sql("SELECT name FROM loaded.country") == "Germany"
    kept = "FROM information_schema.referential_constraints WHERE constraint_schema = 'loaded'"
    assert sql(f"SELECT count(*) {kept}") == "2"
    # The server knows nothing of it.
    assert sql("SELECT count(*) FROM club.person WHERE email LIKE 'real%'") == "500"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"person.about": None}, "no rule for person.about: give each one of fake"),
        ({"person.tags": "fake"}, "person.tags is no text"),
        ({"letter.text": "keep"}, "1 e-mail addresses are left"),
        (NOBODY, "would refer to nothing in person: that violates foreign key"),
    ],
)
def test_a_copy_that_the_rules_do_not_fit_is_refused(program, people, changed, words):
    with pytest.raises((program.FailedError, program.rules.RuleError), match=words):
        people(**changed)
    assert not program.ANONYMISED.exists() or list(program.ANONYMISED.iterdir()) == []
