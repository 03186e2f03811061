"""The settings of a real server, loaded as it loads them."""

import ast
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
        for name in ("SECRET_KEY", "ALLOWED_HOSTS", "DATABASE_URL", "STATIC_ROOT", "MEDIA_ROOT"):
            with self.subTest(name):
                done = manage("check", without=[name])
                self.assertNotEqual(done.returncode, 0)
                self.assertIn(f"Set the {name} environment variable", done.stderr)

    def test_only_what_is_needed(self):
        self.assertEqual(shown("settings.SECRET_KEY"), repr(NEEDED["SECRET_KEY"]))
        self.assertEqual(shown("settings.DATABASES['default']['PASSWORD']"), "'p@ss$word'")
        self.assertEqual(shown("list(settings.DATABASES)"), "['default']")
        self.assertEqual(shown("settings.DEBUG, settings.CELERY_BROKER_URL"), "(False, None)")
        self.assertIn("DummyCache", shown("settings.CACHES['default']['BACKEND']"))
        self.assertEqual(shown("settings.RELEASE"), repr(settings.BASE_DIR.name))

    def test_everything_else(self):
        more = {
            "CONN_MAX_AGE": "0",
            "REPLICA_URL": "postgres://a:b@db2,db1:5432/n?target_session_attrs=prefer-standby",
            "CACHE_URL": "pymemcache://127.0.0.1:22122",
            "CACHE_VERSION": "7",
            "BROKER_URL": "amqp://a:b@worker1/newsroom",
            "EMAIL_URL": "smtp://relay:2525",
            "LOG_LEVEL": "ERROR",
            "RELEASE": "20250101-abc",
        }
        expression = (
            "settings.DATABASES['replica']['HOST'], settings.DATABASES['replica']['OPTIONS'],"
            "settings.DATABASES['default']['CONN_MAX_AGE'], settings.CACHES['default'],"
            "settings.CELERY_BROKER_URL, settings.EMAIL_HOST, settings.EMAIL_PORT,"
            "settings.LOGGING['root']['level'], settings.RELEASE"
        )
        host, options, age, cache, *rest = ast.literal_eval(shown(expression, **more))
        self.assertEqual((host, age), ("db2,db1", 0))
        self.assertEqual(options["target_session_attrs"], "prefer-standby")
        self.assertEqual(options["connect_timeout"], 3)
        self.assertEqual(cache["BACKEND"], "newsroom.cache.Memcached")
        self.assertEqual((cache["LOCATION"], cache["VERSION"]), ("127.0.0.1:22122", 7))
        self.assertEqual(
            rest, ["amqp://a:b@worker1/newsroom", "relay", 2525, "ERROR", "20250101-abc"]
        )

    def test_redis_as_cache(self):
        url = "redis://:secret@10.0.0.2:6379/1"
        cache = shown("settings.CACHES['default']", CACHE_URL=url)
        self.assertIn("newsroom.cache.Redis", cache)
        self.assertIn(url, cache)


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
