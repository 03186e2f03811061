"""
Prepare or migrate a release. `deploy` runs this with the release's own Python, from standard
input, in the folder of its manage.py.

python - prepare OPTIONS    check the site, collect its static files and publish them, and compile
                            its modules to byte-code
python - migrate OPTIONS    apply the pending migrations, on one host of the farm only
python - pending OPTIONS    say which migrations are pending

OPTIONS is a JSON object. The last line printed is "saltern:" and a JSON object with the result.
Only the standard library and the site's Django are used; the site may run on Python 3.8.
"""

import compileall
import filecmp
import gc
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

COMPRESSIBLE = (
    *(".css", ".js", ".mjs", ".json", ".map", ".wasm", ".webmanifest"),
    *(".html", ".txt", ".xml", ".svg", ".ico", ".ttf", ".otf", ".eot"),
)
# Smaller answers don't gain from compression.
SMALLEST = 512
# The error pages that the layers in front show, and what is shown where a site has no such one.
FLAT_PAGES = {404: [], 500: [], 502: ["503.html"], 503: [], 504: ["503.html"]}
# Operations that lose data, or that the code which still runs doesn't survive.
DESTRUCTIVE = {
    "RemoveField": "drops the column",
    "DeleteModel": "drops the table",
    "RenameField": "renames the column that running code reads",
    "RenameModel": "renames the table that running code reads",
    "AlterModelTable": "renames the table that running code reads",
}
DESTRUCTIVE_SQL = re.compile(
    r"\b(drop\s+(table|column|schema|view|type)|truncate|delete\s+from|rename\s+(to|column)"
    r"|alter\s+column\s+\S+\s+(set\s+data\s+)?type)\b",
    re.IGNORECASE,
)
# The table that tells the other hosts of the farm that a release's migration failed.
FAILURES = "saltern_failed_migration"
FAILURES_OF_RELEASE = (
    "SELECT host, at, message FROM saltern_failed_migration WHERE release_name = %s"
)
FAILURES_OF_RUN = "SELECT host, at, message FROM saltern_failed_migration WHERE run = %s"


class RefusalError(Exception):
    """Something that the operator must know; printed as it is."""


def main():
    action, options = sys.argv[1], json.loads(sys.argv[2])
    import django

    # Loading leaves no garbage: a third of the time went into looking for it, then and at the end.
    gc.disable()
    django.setup()
    gc.freeze()
    gc.enable()
    result = {"prepare": prepare, "migrate": migrate, "pending": pending}[action](options)
    sys.stdout.flush()
    print("\nsaltern:" + json.dumps(result))


# --- prepare


def prepare(options):
    from django.core.management import call_command

    warnings = io.StringIO()
    call_command("check", deploy=True, fail_level=options["check_level"], stderr=warnings)
    print(warnings.getvalue())
    result = {"warnings": len(re.findall(r"^\?|^\S+: \(", warnings.getvalue(), re.MULTILINE))}
    result.update(static_files(options))
    result["pages"] = flat_pages(options["pages"])
    try:
        result.update(pending(options))
    except Exception as error:  # noqa: BLE001 - the migrate phase asks again and says it
        print(f"Pending migrations are not known yet: {error}")
    # The site's own user can't write byte-code. A file for another Python is no error.
    compileall.compile_dir(options["root"], quiet=2)
    return result


def static_files(options):
    """Collect into the release's own folder, then add what is new to the folder that is served."""
    from django.apps import apps
    from django.conf import settings
    from django.core.management import call_command

    if not apps.is_installed("django.contrib.staticfiles"):
        return {"static": 0, "published": 0}
    os.umask(0o022)
    call_command("collectstatic", interactive=False, verbosity=0)
    if not options["served"]:
        return {"static": 0, "published": 0}
    own, served = Path(options["static"]), Path(options["served"])
    if not own.is_dir():
        raise RefusalError(
            f"collectstatic wrote to STATIC_ROOT={settings.STATIC_ROOT}: let the site's settings "
            f"take STATIC_ROOT from the environment, or set static_url: '' in sites.yaml if its "
            f"storage serves them elsewhere."
        )
    files = sorted(path for path in own.rglob("*") if path.is_file())
    published = [publish(path, served / path.relative_to(own), options["mtime"]) for path in files]
    return {"static": len(files), "published": sum(published)}


def flat_pages(folder):
    """Write the site's own error pages for the layers in front, who show them in its place."""
    from django.template import TemplateDoesNotExist
    from django.template.loader import render_to_string

    written = []
    for status, others in FLAT_PAGES.items():
        path = Path(folder, f"{status}.html")
        try:
            page = render_to_string([path.name, *others])
        except TemplateDoesNotExist:
            if path.exists():  # the release before had it
                path.unlink()
            continue
        except Exception as error:  # noqa: BLE001 - a page that needs a request isn't flat
            print(f"{path.name} can't be rendered on its own: {error}")
            continue
        put(path, page.encode())
        written.append(status)
    return written


def publish(source, target, mtime):
    """Put a file, and its compressed twins, where it is served; says whether that was needed."""
    if target.exists() and filecmp.cmp(source, target, shallow=False):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    # The same time on every host, so that the answers' validators agree.
    os.utime(source, (mtime, mtime))
    data = source.read_bytes()
    for suffix, packed in compressed(source, data).items():
        put(target.with_name(target.name + suffix), packed, mtime)
    put(target, data, mtime)
    return True


def compressed(source, data):
    """What nginx serves instead: gzip, and brotli where the host has it; by the name's ending."""
    if source.suffix not in COMPRESSIBLE or len(data) < SMALLEST:
        return {}
    twins = {".gz": gzip.compress(data, 9, mtime=0)}
    if shutil.which("brotli"):
        command = ["brotli", "--stdout", "--best", str(source)]
        twins[".br"] = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return twins


def put(target, data, mtime=None):
    """Write a file that is read by others at the same time."""
    beside = target.with_name(f"{target.name}.new-{os.getpid()}")
    beside.write_bytes(data)
    beside.chmod(0o644)
    if mtime:
        os.utime(beside, (mtime, mtime))
    beside.replace(target)


# --- migrations


def pending(options):
    """Which migrations the database lacks, in order, and what is dangerous about each."""
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor

    executor = MigrationExecutor(connection)
    executor.loader.check_consistent_history(connection)
    conflicts = executor.loader.detect_conflicts()
    if conflicts:
        raise RefusalError(
            "Conflicting migrations (merge them with makemigrations --merge): "
            + "; ".join(f"{app}: {', '.join(names)}" for app, names in conflicts.items())
        )
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    known = sorted(".".join(key) for key in executor.loader.disk_migrations)
    if not plan:
        return {"pending": [], "migrations": known}
    graph = executor.loader.graph
    state = executor.loader.project_state(
        [key for key in executor.loader.applied_migrations if key in graph.nodes]
    )
    # What these very migrations create has nothing to lose.
    old_apps = {app for app, _ in executor.loader.applied_migrations}
    found = []
    for migration, _ in plan:
        dangers = [
            danger
            for operation in migration.operations
            if migration.app_label in old_apps
            for danger in dangers_of(operation, migration.app_label, state, connection)
        ]
        found.append({"name": f"{migration.app_label}.{migration.name}", "dangers": dangers})
        state = migration.mutate_state(state, preserve=False)
    return {"pending": found, "migrations": known}


def dangers_of(operation, app, state, connection):
    """What an operation would drop, rename or rewrite: a list of sentences."""
    kind = type(operation).__name__
    if kind == "SeparateDatabaseAndState":
        return [
            danger
            for inner in operation.database_operations
            for danger in dangers_of(inner, app, state, connection)
        ]
    if kind in DESTRUCTIVE:
        return [f"{operation.describe()}: {DESTRUCTIVE[kind]}"]
    if kind == "RunSQL":
        found = DESTRUCTIVE_SQL.search(str(operation.sql))
        return [f"Raw SQL: {found.group(0)}"] if found else []
    if kind == "AlterField":
        return type_change(operation, app, state, connection)
    return []


def type_change(operation, app, state, connection):
    try:
        model = state.models[app, operation.model_name_lower]
        old, new = model.fields[operation.name], operation.field
        if old.is_relation or new.is_relation:
            same = old.is_relation and new.is_relation
        else:
            same = old.db_type(connection) == new.db_type(connection)
    except (KeyError, AttributeError):
        same = False
    return [] if same else [f"{operation.describe()}: changes the column's type"]


def migrate(options):
    """
    Apply the pending migrations exactly once, however many hosts ask for it at the same time.

    A database session holds the lock: it dies with the process. The hosts that wait find nothing
    pending when they get it, or the note that the migration failed.
    """
    from django.core.management import call_command
    from django.db import connection, connections
    from django.db.backends.signals import connection_created

    found = pending(options)
    done = {"applied": [], "waited": 0, "migrations": found["migrations"]}
    if not found["pending"]:
        return done
    # All hosts of the farm may wait: one connection each is enough.
    connection.close()
    holder = connections.create_connection("default")
    done["waited"] = wait_for_lock(holder, options)
    try:
        todo = pending(options)["pending"]
        if not todo:
            return done
        refuse_failed(holder, options)
        refuse_dangers(todo, options)
        connection_created.connect(lambda connection, **_: limit(connection, options), weak=False)
        connection.close()
        try:
            call_command("migrate", interactive=False, verbosity=1)
        except Exception as error:
            if not passing(error):
                note_failure(holder, options, error)
            raise
        forget_failure(holder, options)
        return done | {"applied": [migration["name"] for migration in todo]}
    finally:
        holder.close()


def wait_for_lock(holder, options):
    """Seconds that it took to become the one process of the farm that migrates this database."""
    started = time.monotonic()
    told = False
    while not try_lock(holder):
        if not told:
            print("Another host migrates this database: waiting for it.", flush=True)
            told = True
        if time.monotonic() - started > options["wait"]:
            raise RefusalError(
                f"Another host has been migrating this database for more than {options['wait']} s."
            )
        time.sleep(0.1)
    return round(time.monotonic() - started, 2)


def try_lock(holder):
    """Take the farm's lock if it is free. SQLite has none: its file belongs to one host."""
    if holder.vendor == "sqlite":
        return True
    name = f"saltern migrate {holder.settings_dict['NAME']}"
    digest = hashlib.sha256(name.encode()).digest()
    with holder.cursor() as cursor:
        if holder.vendor == "postgresql":
            key = int.from_bytes(digest[:8], "big", signed=True)
            cursor.execute("SELECT pg_try_advisory_lock(%s)", [key])
        elif holder.vendor == "mysql":
            cursor.execute("SELECT GET_LOCK(%s, 0)", [digest.hex()[:60]])
        else:
            raise RefusalError(f"Several hosts can't migrate a {holder.vendor} database safely.")
        return bool(cursor.fetchone()[0])


def limit(connection, options):
    """A migration that would block the site gives up instead."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(f"SET lock_timeout = {int(options['lock_timeout_ms'])}")
            cursor.execute(f"SET statement_timeout = {int(options['statement_timeout_ms'])}")
        elif connection.vendor == "mysql":
            seconds = max(1, int(options["lock_timeout_ms"]) // 1000)
            cursor.execute(f"SET SESSION lock_wait_timeout = {seconds}")
            cursor.execute(f"SET SESSION innodb_lock_wait_timeout = {seconds}")
            if connection.mysql_is_mariadb:  # MySQL limits SELECT alone
                seconds = int(options["statement_timeout_ms"]) / 1000
                cursor.execute(f"SET SESSION max_statement_time = {seconds}")


def passing(error):
    """Whether the same migration may well succeed later: the database was busy or away."""
    from django.db import InterfaceError, OperationalError

    return isinstance(error, (OperationalError, InterfaceError))


def refuse_dangers(todo, options):
    dangers = [f"{m['name']}: {danger}" for m in todo for danger in m["dangers"]]
    if dangers and not options["allow_destructive"]:
        raise RefusalError(
            "These migrations drop or rewrite what the running release may still use:\n  "
            + "\n  ".join(dangers)
            + "\nShip with allow_destructive=True if that is meant."
        )


def refuse_failed(holder, options):
    """Don't run again what failed: for this release, or with force in this very run."""
    question, value = FAILURES_OF_RELEASE, options["release"]
    if options["force"]:
        question, value = FAILURES_OF_RUN, options["run"]
    with holder.cursor() as cursor:
        if FAILURES not in holder.introspection.table_names(cursor):
            return
        cursor.execute(question, [value])
        row = cursor.fetchone()
    if row:
        raise RefusalError(
            f"The migration of this release failed on {row[0]} at {row[1]}: {row[2]}\n"
            "Ship a release that mends it, or this one again with force=True."
        )


def note_failure(holder, options, error):
    with holder.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE IF NOT EXISTS saltern_failed_migration "
            "(release_name varchar(200), run varchar(64), host varchar(255), at varchar(32), "
            "message varchar(1000))"
        )
        cursor.execute(
            "INSERT INTO saltern_failed_migration VALUES (%s, %s, %s, %s, %s)",
            [
                options["release"],
                options["run"],
                options["host"],
                time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
                f"{type(error).__name__}: {error}"[:1000],
            ],
        )


def forget_failure(holder, options):
    with holder.cursor() as cursor:
        if FAILURES in holder.introspection.table_names(cursor):
            cursor.execute(
                "DELETE FROM saltern_failed_migration WHERE release_name = %s",
                [options["release"]],
            )


if __name__ == "__main__":
    try:
        main()
    except RefusalError as refusal:
        sys.exit(f"{refusal}")
