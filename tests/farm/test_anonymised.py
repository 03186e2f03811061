"""The copy for development on the lab: made of a backup, with no reader's address left."""

import time

SITE = "newsroom"
EMAILS = "SELECT email FROM auth_user WHERE email <> '' UNION SELECT email FROM articles_author"
FILE = f"/var/lib/saltern/backup/anonymised/{SITE}.sql.gz"


def psql(lab, host, sql):
    command = ["runuser", "-u", "postgres", "--", "psql", "-XqAtc", sql, SITE]
    return lab.run(host, *command).stdout.strip()


def primary(lab):
    states = {h: lab.salt(h, "database.status")[h]["state"] for h in ("db1", "db2")}
    return next(host for host, state in states.items() if state == "primary")


def test_no_original_address_is_left_in_the_copy(lab):
    host = primary(lab)
    psql(
        lab,
        host,
        "INSERT INTO auth_user (username, email, first_name, last_name, password, is_superuser,"
        " is_staff, is_active, date_joined) VALUES ('farm-test', 'farm-test@readers.test', 'Farm',"
        " 'Test', 'x', false, false, true, now()) ON CONFLICT DO NOTHING",
    )
    try:
        psql(lab, host, "SELECT pg_switch_wal()")
        archived(lab, host)
        before = psql(lab, host, EMAILS).splitlines()
        made = lab.salt("backup1", "backup.anonymise")["backup1"]
    finally:
        psql(lab, host, "DELETE FROM auth_user WHERE username = 'farm-test'")
    assert made["ok"], made
    assert "farm-test@readers.test" in before
    dump = lab.run("backup1", "zcat", FILE).stdout
    assert [email for email in before if email in dump] == []
    assert "farm-test" not in dump
    users = psql(lab, host, "SELECT count(*) FROM auth_user")
    assert dump.count("@example.com") >= int(users)
    # Nobody but root may read it, and the running server is as it was.
    assert lab.run("backup1", "stat", "-c", "%U %a", FILE.rpartition("/")[0]).stdout == "root 700\n"
    assert [e for e in before if "farm-test" not in e] == psql(lab, host, EMAILS).splitlines()


def archived(lab, host, seconds=120):
    """Wait until the log up to now has arrived on the backup host."""
    file = psql(lab, host, "SELECT pg_walfile_name(pg_current_wal_lsn() - 1)")
    # An idle server doesn't begin the next file by itself: nobody would miss what is in this one.
    psql(lab, host, "SELECT pg_switch_wal()")
    deadline = time.monotonic() + seconds
    done = f"SELECT coalesce(last_archived_wal >= '{file}', false) FROM pg_stat_archiver"
    while psql(lab, host, done) != "t":
        assert time.monotonic() < deadline, f"{host} didn't hand over {file}"
        time.sleep(0.5)
