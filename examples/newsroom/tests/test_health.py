"""/health/: true about the database and the cache, for any host name."""

import json

from django.test import SimpleTestCase, TestCase, override_settings

from tests.server import run


class HealthTests(TestCase):
    def test_well(self):
        with override_settings(RELEASE="r1", ALLOWED_HOSTS=["newsroom.lab"]):
            response = self.client.get("/health/", headers={"Host": "10.0.0.7"})
        self.assertEqual(response.status_code, 200)
        self.assertEqual(response.json(), {"release": "r1", "database": "ok", "cache": "ok"})
        self.assertEqual(response["Cache-Control"], "no-store")
        self.assertFalse(response.cookies)

    def test_it_costs_one_query(self):
        with self.assertNumQueries(1):
            self.client.get("/health/")

    def test_only_reading(self):
        self.assertEqual(self.client.head("/health/").status_code, 200)
        self.assertEqual(self.client.post("/health/").status_code, 405)

    def test_a_dead_cache_is_named_but_the_site_lives(self):
        dead = {"BACKEND": "newsroom.cache.Memcached", "LOCATION": "127.0.0.1:1"}
        with override_settings(CACHES={"default": dead}):
            response = self.client.get("/health/")
        self.assertEqual(response.status_code, 200)
        self.assertEqual(response.json()["cache"], "down")

    def test_no_cache_is_no_fault(self):
        off = {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}
        with override_settings(CACHES={"default": off}):
            response = self.client.get("/health/")
        self.assertEqual((response.status_code, response.json()["cache"]), (200, "off"))


class LostDatabaseTests(SimpleTestCase):
    def test_without_a_database_it_is_not_well(self):
        code = (
            "from django.test import Client\n"
            "response = Client(raise_request_exception=False).get('/health/')\n"
            "print(response.status_code, response.content.decode())\n"
        )
        nobody = "postgres://newsroom:secret-word@127.0.0.1:1/newsroom"
        done = run(code, DATABASE_URL=nobody, REPLICA_URL=nobody, RELEASE="r1")
        status, _, body = done.stdout.partition(" ")
        self.assertEqual(status, "503", done.stderr)
        self.assertEqual(
            json.loads(body),
            {"release": "r1", "database": "down", "replica": "down", "cache": "off"},
        )
        self.assertIn("newsroom.health", done.stderr)
        self.assertNotIn("secret-word", done.stdout + done.stderr)
