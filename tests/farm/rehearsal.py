"""What the tests of background work share: tasks that are counted when they are done."""

import datetime
import pathlib
import re

import pytest

SITE = "newsroom"
DATABASE = "db1"
# What the drills' tasks write; nothing else of the site is that old.
FIRST_DAY = datetime.date(1990, 1, 1)


def site_python(lab, host, code):
    """Run Python with the live release of the site, as its own user, on a worker host."""
    root = f"/srv/sites/{SITE}"
    release = pathlib.PurePath(lab.run(host, "readlink", f"{root}/current").stdout.strip()).name
    script = "/usr/local/lib/saltern/celery_service.py"
    note, env = f"{root}/deploy/releases/{release}.json", f"{root}/shared/.env"
    command = ["python3", script, note, env, "run", "python", "-c", code]
    return lab.run(host, "runuser", "-u", f"site-{SITE}", "--", *command).stdout


def queue(lab, host, count, first=0):
    """
    Queue tasks on a host, half of them in each queue: the digests of so many days. The same day
    twice is the same task.
    """
    days = [str(FIRST_DAY + datetime.timedelta(first + n)) for n in range(count)]
    site_python(
        lab,
        host,
        "import django; django.setup()\n"
        "from newsroom.celery import app\n"
        "from articles.tasks import write_digest\n"
        f"for number, day in enumerate({days!r}):\n"
        # The lengths repeat every six days: each queue gets all of them.
        "    write_digest.apply_async([day], queue=('high', 'low')[number // 6 % 2])",
    )


def sql(lab, statement):
    """What PostgreSQL answers: lines."""
    command = ["runuser", "-u", "postgres", "--", "psql", "-XAtq", "-v", "ON_ERROR_STOP=1"]
    return lab.run(DATABASE, *command, "-d", SITE, "-c", statement).stdout.split()


def done(lab):
    """How many of the queued tasks were done, and how many runs that took."""
    (line,) = sql(lab, "SELECT count(DISTINCT day) || '/' || count(*) FROM rehearsal")
    return tuple(int(number) for number in line.split("/"))


def flower_shows(lab, host):
    """The hosts whose workers the Flower of a worker host shows; none if it doesn't answer."""
    ask = ["curl", "-sf", "--noproxy", "*", "http://127.0.0.1:5555/workers"]
    return set(re.findall(r"@(worker\d+)", lab.run(host, *ask, check=False).stdout))


@pytest.fixture
def rehearsal(lab):
    """Each run of a task is counted, and takes 1.25 s on average, 5 s at most."""
    undo = (
        "DROP TRIGGER IF EXISTS rehearsal ON articles_digest;"
        "DROP FUNCTION IF EXISTS rehearse(); DROP TABLE IF EXISTS rehearsal;"
        "DELETE FROM articles_digest WHERE day < '2000-01-01'"
    )
    sql(lab, undo)
    sql(
        lab,
        "CREATE TABLE rehearsal (day date, at timestamptz DEFAULT clock_timestamp());"
        "CREATE FUNCTION rehearse() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
        " IF NEW.day < '2000-01-01' THEN"
        " PERFORM pg_sleep(CASE WHEN (NEW.day - date '1990-01-01') % 100 = 50 THEN 5"
        " ELSE (NEW.day - date '1990-01-01') % 6 * 0.5 END);"
        " INSERT INTO rehearsal VALUES (NEW.day);"
        " END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER rehearsal BEFORE INSERT OR UPDATE ON articles_digest"
        " FOR EACH ROW EXECUTE FUNCTION rehearse()",
    )
    yield
    sql(lab, undo)


def commit(lab, message):
    """A new commit in the site's repository, so that there is a release to ship."""
    git = "git --git-dir=/srv/git/newsroom.git -c user.name=lab -c user.email=lab@localhost"
    lab.run(
        "master",
        "sh",
        "-c",
        f'new=$({git} commit-tree "main^{{tree}}" -p main -m "{message}") &&'
        f" {git} update-ref refs/heads/main $new",
    )
