"""The settings of a real server, loaded as it loads them."""

import tempfile
from pathlib import Path

from django.conf import settings
from django.test import SimpleTestCase

from tests.server import NEEDED, manage, run, shown


class CheckTests(SimpleTestCase):
    def check(self, **environment):
        return manage("check", "--deploy", "--fail-level", "WARNING", **environment)

    def test_clean_with_https(self):
        done = self.check(FORCE_HTTPS="on")
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_clean_where_plain_http_was_decided_for(self):
        done = self.check(FORCE_HTTPS="off")
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_warns_where_nobody_decided(self):
        done = self.check()
        self.assertEqual(done.returncode, 1)
        self.assertIn("security.W012", done.stderr)
        self.assertIn("security.W016", done.stderr)


class EnvironmentTests(SimpleTestCase):
    def test_what_is_missing_is_named(self):
        needed = ["SECRET_KEY", "ALLOWED_HOSTS", "DATABASE_URL", "STATIC_ROOT", "MEDIA_ROOT"]
        code = (
            "import os, runpy\n"
            f"for name in {needed}:\n"
            "    value = os.environ.pop(name)\n"
            "    try:\n"
            "        runpy.run_module('newsroom.settings.deploy')\n"
            "    except Exception as error:\n"
            "        print(error)\n"
            "    os.environ[name] = value\n"
        )
        done = run(code)
        said = [f"Set the {name} environment variable" for name in needed]
        self.assertEqual(done.stdout.splitlines(), said, done.stderr)

    def test_only_what_is_needed(self):
        key, password, databases, debug, broker, cache, release = shown(
            "settings.SECRET_KEY, settings.DATABASES['default']['PASSWORD'],"
            "list(settings.DATABASES), settings.DEBUG, settings.CELERY_BROKER_URL,"
            "settings.CACHES['default']['BACKEND'], settings.RELEASE"
        )
        self.assertEqual((key, password), (NEEDED["SECRET_KEY"], "p@ss$word"))
        self.assertEqual((databases, debug, broker), (["default"], False, None))
        self.assertIn("DummyCache", cache)
        self.assertEqual(release, settings.BASE_DIR.name)

    def test_everything_else(self):
        brokers = "amqp://a:b@10.0.0.1:5672/newsroom;amqp://a:b@10.0.0.2:5672/newsroom"
        told = {
            "CONN_MAX_AGE": "0",
            "REPLICA_URL": "postgres://a:b@db2:5432,db1:5432/n?target_session_attrs=prefer-standby",
            "CACHE_URL": "pymemcache://127.0.0.1:22122",
            "CACHE_VERSION": "7",
            "SESSION_REDIS_URL": "redis://newsroom:secret@10.0.0.2:6380/0",
            "BROKER_URL": brokers,
            "EMAIL_URL": "smtp://relay:2525",
            "LOG_LEVEL": "ERROR",
            "RELEASE": "20250101-abc",
        }
        age, replica, caches, alias, *rest = shown(
            "settings.DATABASES['default']['CONN_MAX_AGE'], settings.DATABASES['replica'],"
            "settings.CACHES, settings.SESSION_CACHE_ALIAS,"
            "settings.CELERY_BROKER_URL, settings.EMAIL_HOST, settings.EMAIL_PORT,"
            "settings.LOGGING['root']['level'], settings.RELEASE",
            **told,
        )
        self.assertEqual((age, replica["HOST"], replica["PORT"]), (0, "db2,db1", "5432,5432"))
        self.assertEqual(replica["OPTIONS"]["target_session_attrs"], "prefer-standby")
        self.assertEqual(replica["OPTIONS"]["connect_timeout"], 3)
        cache, sessions = caches["default"], caches[alias]
        self.assertEqual(cache["BACKEND"], "newsroom.cache.Memcached")
        self.assertEqual((cache["LOCATION"], cache["VERSION"]), ("127.0.0.1:22122", 7))
        self.assertEqual(sessions["BACKEND"], "newsroom.cache.Redis")
        self.assertEqual(sessions["LOCATION"], told["SESSION_REDIS_URL"])
        self.assertEqual(rest, [brokers, "relay", 2525, "ERROR", "20250101-abc"])


class StaticFilesTests(SimpleTestCase):
    def test_names_are_hashed_and_the_list_stays_with_the_release(self):
        manifest = Path(settings.BASE_DIR, "staticfiles.json")
        before = manifest.read_bytes() if manifest.exists() else None
        self.addCleanup(self.restore, manifest, before)
        with tempfile.TemporaryDirectory() as root:
            done = manage("collectstatic", "--noinput", STATIC_ROOT=root)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertFalse(Path(root, "staticfiles.json").exists())
            self.assertEqual(len(list(Path(root).glob("newsroom.????????????.css"))), 1)
        self.assertTrue(manifest.exists())

    def restore(self, file, content):
        if content is None:
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(content)


class LogTests(SimpleTestCase):
    def test_one_line_each_with_the_request_id(self):
        code = (
            "from django.test import Client\n"
            "Client(raise_request_exception=False).get('/', headers={'X-Request-ID': 'abc-1'})\n"
        )
        done = run(code, ALLOWED_HOSTS="other")
        lines = done.stderr.strip().splitlines()
        self.assertEqual(len(lines), 1, done.stderr)
        self.assertIn("[abc-1]", lines[0])
        self.assertIn("DisallowedHost", lines[0])
