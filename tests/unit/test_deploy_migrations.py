"""Which migrations are called dangerous: real Django operations on a real state."""

import importlib.util
import pathlib

import django
import pytest
from django.conf import settings

ROOT = pathlib.Path(__file__).parents[2]

if not settings.configured:
    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        INSTALLED_APPS=[],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    )
    django.setup()

from django.db import connection, migrations, models  # noqa: E402 - Django is set up above
from django.db.migrations.state import ModelState, ProjectState  # noqa: E402 - as above

spec = importlib.util.spec_from_file_location("tool", ROOT / "salt/django/files/release.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


@pytest.fixture
def state():
    state = ProjectState()
    fields = [
        ("id", models.BigAutoField(primary_key=True)),
        ("name", models.CharField(max_length=50)),
        ("size", models.IntegerField()),
    ]
    state.add_model(ModelState("shop", "Thing", fields))
    return state


DANGEROUS = {
    "drop a column": migrations.RemoveField("thing", "size"),
    "drop a table": migrations.DeleteModel("Thing"),
    "rename a column": migrations.RenameField("thing", "size", "width"),
    "rename a table": migrations.RenameModel("Thing", "Object"),
    "name the table": migrations.AlterModelTable("thing", "other"),
    "rewrite a column": migrations.AlterField("thing", "size", models.TextField()),
    "raw drop": migrations.RunSQL("ALTER TABLE shop_thing DROP COLUMN size"),
    "raw rewrite": migrations.RunSQL("ALTER TABLE shop_thing ALTER COLUMN size TYPE bigint"),
    "raw delete": migrations.RunSQL(["DELETE FROM shop_thing"]),
    "inside another": migrations.SeparateDatabaseAndState(
        database_operations=[migrations.RemoveField("thing", "size")]
    ),
}
HARMLESS = {
    "add a column": migrations.AddField("thing", "colour", models.TextField(null=True)),
    "add a table": migrations.CreateModel("Other", [("id", models.AutoField(primary_key=True))]),
    "the state alone": migrations.SeparateDatabaseAndState(
        state_operations=[migrations.RemoveField("thing", "size")]
    ),
    "the same type": migrations.AlterField(
        "thing", "size", models.IntegerField(verbose_name="Size")
    ),
    "raw index": migrations.RunSQL("CREATE INDEX thing_size ON shop_thing (size)"),
    "code": migrations.RunPython(migrations.RunPython.noop),
}


@pytest.mark.parametrize("name", DANGEROUS)
def test_what_drops_or_rewrites_is_dangerous(state, name):
    assert tool.dangers_of(DANGEROUS[name], "shop", state, connection)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_adds_is_not(state, name):
    assert tool.dangers_of(HARMLESS[name], "shop", state, connection) == []
