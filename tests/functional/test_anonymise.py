"""The anonymised copy, made of a real server's database by the program of the backup host."""

import gzip
import pathlib
import tempfile

import pytest

from tests.functional import backup_program
from tests.functional.postgres import Server

RULES = backup_program.RULES | {"shop.bill.payer": "fake"}
SCHEMA = """
CREATE SCHEMA shop;
CREATE TABLE country (code char(2) PRIMARY KEY, name text);
CREATE TABLE person (id serial PRIMARY KEY, name varchar(60) NOT NULL,
    email varchar(100) NOT NULL UNIQUE, password varchar(128), phone varchar(20) NOT NULL,
    about text, tags jsonb, born date, score int, country char(2) REFERENCES country);
CREATE TABLE letter (id serial PRIMARY KEY, sender varchar(100) REFERENCES person (email),
    text text);
CREATE TABLE shop.bill (payer varchar(100) REFERENCES person (email), cents int);
CREATE TABLE session (key text PRIMARY KEY, data text);
CREATE TABLE saltern_failed_migration (host varchar(255), message varchar(1000));
INSERT INTO country VALUES ('de', 'Germany');
INSERT INTO person (name, email, password, phone, about, tags, born, score, country)
SELECT 'Given Name' || i, 'real' || i || '@mail.test', 'secret' || i, '030-' || i,
    repeat('Grew up near the sea. ', 8), jsonb_build_array('real' || i || '@mail.test'),
    '1990-01-01', i, 'de'
FROM generate_series(1, 500) i;
INSERT INTO letter (sender, text)
SELECT email, E'Hello,\\nreal7@mail.test told me.' FROM person;
-- From nobody: that stays so.
INSERT INTO letter (text) VALUES ('Guess who.');
INSERT INTO shop.bill SELECT email, score FROM person;
INSERT INTO session VALUES ('k', 'real1@mail.test');
INSERT INTO saltern_failed_migration VALUES ('app1', 'Key (email)=(real1@mail.test) is taken.');
"""


@pytest.fixture(scope="module")
def server():
    with tempfile.TemporaryDirectory(prefix="saltern-") as folder:
        found = Server(pathlib.Path(folder))
        try:
            yield found
        finally:
            found.close()


@pytest.fixture
def program(server, tmp_path, monkeypatch):
    """saltern-backup, with the test's server in the place of the restored one."""
    found = backup_program.load(monkeypatch, "backup")
    address = ["--host=127.0.0.1", f"--port={server.port}", "--username=postgres"]
    monkeypatch.setattr(found, "scratch_address", lambda: address)
    monkeypatch.setattr(found, "ANONYMISED", tmp_path / "anonymised")
    server.sql("DROP DATABASE IF EXISTS tiny", "postgres")
    server.sql("CREATE DATABASE tiny", "postgres")
    server.sql(SCHEMA)
    return found


def copy(program, server, **changed):
    rules = {k: v for k, v in (RULES | changed).items() if v}
    plan = {"programs": server.programs, "anonymise": {"tiny": rules}}
    made = program.anonymised_dump(plan, "tiny")
    return made, gzip.open(made["file"], "rt").read()


def test_no_original_address_is_left(program, server):
    made, dump = copy(program, server)
    assert "mail.test" not in dump
    assert "Given Name" not in dump
    assert "030-" not in dump
    assert "secret1" not in dump
    assert "by the sea" not in dump
    assert dump.count("@example.com") >= 1500
    assert made["addresses_removed"] == 500


def test_what_belonged_together_still_does(program, server):
    _made, dump = copy(program, server)
    server.sql("DROP DATABASE IF EXISTS loaded", "postgres")
    server.sql("CREATE DATABASE loaded", "postgres")
    loader = program.run(["psql", "-qX", *program.scratch_address(), "loaded"], 60, dump)
    assert "ERROR" not in loader
    joined = "FROM person p JOIN letter l ON l.sender = p.email JOIN shop.bill b ON b.payer = email"
    assert server.sql(f"SELECT count(*) {joined}", "loaded") == "500"
    assert server.sql("SELECT count(*) FROM session", "loaded") == "0"
    # What tells of nobody is as it was, and joined to the same rows.
    assert server.sql(f"SELECT sum(score) - sum(cents) {joined}", "loaded") == "0"
    facts = "count(DISTINCT name), count(DISTINCT email), max(born), max(phone), count(tags)"
    assert server.sql(f"SELECT {facts} FROM person", "loaded") == "500|500|1990-01-01||0"
    assert server.sql("SELECT name FROM country", "loaded") == "Germany"
    assert server.sql("SELECT count(*) FROM letter WHERE sender IS NULL", "loaded") == "1"
    references = "SELECT count(*) FROM pg_constraint WHERE contype = 'f'"
    assert server.sql(references, "loaded") == "3"


def test_each_copy_has_other_fakes(program, server):
    emails = []
    for _ in range(2):
        server.sql("DROP DATABASE tiny", "postgres")
        server.sql("CREATE DATABASE tiny", "postgres")
        server.sql(SCHEMA)
        copy(program, server)
        emails.append(server.sql("SELECT email FROM person WHERE id = 1"))
    assert emails[0] != emails[1]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"person.about": None}, "no rule for person.about: give each one of fake"),
        ({"person.nick": "fake"}, "person.nick is no table or column"),
        ({"person.tags": "fake"}, "person.tags is no text"),
        ({"person.name": "keeep"}, "'keeep' is none of fake, hash, clear, keep"),
        ({"session": "fake"}, "'fake' is none of empty, keep"),
    ],
)
def test_rules_that_do_not_fit_are_told(program, server, changed, words):
    with pytest.raises(program.rules.RuleError, match=words):
        copy(program, server, **changed)
    assert server.sql("SELECT count(*) FROM person WHERE email LIKE 'real%'") == "500"


def test_an_address_in_a_kept_column_stops_the_copy(program, server):
    with pytest.raises(program.FailedError, match="1 e-mail addresses are left"):
        copy(program, server, **{"letter.text": "keep"})
    assert list(program.ANONYMISED.iterdir()) == []


def test_a_reference_to_an_emptied_table_stops_the_copy(program, server):
    rules = {name: word for name, word in RULES.items() if not name.startswith("person.")}
    plan = {"programs": server.programs, "anonymise": {"tiny": rules | {"person": "empty"}}}
    with pytest.raises(program.FailedError, match="violates foreign key"):
        program.anonymised_dump(plan, "tiny")
