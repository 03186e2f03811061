"""Uploads on the lab: sent to the backup host, brought back, and safe from the host that sends."""

import pytest

from tests.farm.database_farm import APP, BACKUP, SITE, call

MEDIA = f"/srv/sites/{SITE}/shared/media"
USER = f"site-{SITE}"


@pytest.fixture
def folder(lab):
    """A folder with two uploads of the site's own user."""
    folder = f"{MEDIA}/farm test"
    write = 'mkdir -p "$0" && printf first > "$0/one.txt" && printf second > "$0/two.txt"'
    lab.run(APP, "runuser", "-u", USER, "--", "sh", "-c", write, folder)
    yield folder
    lab.run(APP, "rm", "-rf", folder)


def test_uploads_that_are_gone_come_back(lab, folder):
    assert SITE in call(lab, APP, "backup.run", "uploads")
    lab.run(APP, "rm", f"{folder}/one.txt")
    lab.run(APP, "sh", "-c", f"printf changed > '{folder}/two.txt'")
    done = call(lab, APP, "backup.restore", f"uploads={SITE}")
    assert done["files"] == ["farm test/one.txt"], done
    assert lab.run(APP, "cat", f"{folder}/one.txt").stdout == "first"
    assert lab.run(APP, "stat", "-c", "%U", f"{folder}/one.txt").stdout.strip() == USER
    assert lab.run(APP, "cat", f"{folder}/two.txt").stdout == "changed"


def test_the_host_that_sends_can_delete_nothing(lab, folder):
    sent = call(lab, APP, "backup.run", "uploads")[SITE]["snapshot"]
    files = lab.run(BACKUP, "find", "/var/lib/saltern-uploads/data", "-type", "f").stdout
    restic = (
        "RESTIC_REPOSITORY_FILE=/etc/saltern/uploads.repository"
        " RESTIC_PASSWORD_FILE=/etc/saltern/uploads.passphrase"
        " restic --cacert /etc/saltern/uploads.pem --no-cache"
    )
    done = lab.run(APP, "sh", "-c", f"{restic} forget --prune {sent}", check=False)
    assert done.returncode, done.stdout
    assert sent in [one["snapshot"] for one in call(lab, BACKUP, "backup.list")["uploads"]]
    assert lab.run(BACKUP, "find", "/var/lib/saltern-uploads/data", "-type", "f").stdout == files


def test_the_backup_host_sees_that_they_came_and_forgets_only_by_age(lab, folder):
    sent = call(lab, APP, "backup.run", "uploads")[SITE]["snapshot"]
    call(lab, BACKUP, "backup.run", "uploads")  # hosts that never sent are a complaint of theirs
    assert sent in [one["snapshot"] for one in call(lab, BACKUP, "backup.list")["uploads"]]
    complaints = call(lab, BACKUP, "backup.complaints")
    assert not [one for one in complaints if f"on {APP} " in one], complaints
