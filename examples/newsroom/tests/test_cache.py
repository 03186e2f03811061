"""A dead cache is a miss, entries don't expire together, one makes what all want."""

import shutil
import socket
import subprocess
import threading
import time
import unittest

from django.core.cache import cache, caches
from django.test import SimpleTestCase, TestCase, override_settings

from newsroom.cache import Forgiving
from newsroom.caching import made_by_one


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def settings_for(kind, port):
    location = f"127.0.0.1:{port}" if kind == "Memcached" else f"redis://127.0.0.1:{port}"
    options = {"dead_timeout": 0, "retry_attempts": 0} if kind == "Memcached" else {}
    return {
        "default": {
            "BACKEND": f"newsroom.cache.{kind}",
            "LOCATION": location,
            "OPTIONS": options,
        }
    }


def wait_until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"Still not true after {seconds} s")
        time.sleep(0.05)


class Server:
    """A real memcached or Redis server on a port of its own."""

    commands = {
        "Memcached": ["memcached", "-u", "nobody", "-l", "127.0.0.1", "-p"],
        "Redis": ["redis-server", "--bind", "127.0.0.1", "--save", "", "--port"],
    }

    def __init__(self, kind):
        self.kind, self.port = kind, free_port()
        self.command = [*self.commands[kind], str(self.port)]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        wait_until(self.answers)

    def answers(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self):
        self.process.kill()
        self.process.wait()


class DeadCacheTests(TestCase):
    def setUp(self):
        Forgiving._logged = -1e9

    def test_every_operation_is_a_miss_and_one_line_is_logged(self):
        for kind in ("Memcached", "Redis"):
            Forgiving._logged = -1e9
            with (
                self.subTest(kind),
                override_settings(CACHES=settings_for(kind, 1)),
                self.assertLogs("newsroom.cache", "WARNING") as logged,
            ):
                dead = caches["default"]
                self.assertEqual(dead.get("a", "missing"), "missing")
                self.assertEqual(dead.get_many(["a", "b"]), {})
                self.assertNotIn("a", dead)
                self.assertFalse(dead.add("a", 1))
                self.assertIsNone(dead.set("a", 1))
                self.assertEqual(dead.set_many({"a": 1}), ["a"])
                self.assertFalse(dead.touch("a"))
                self.assertFalse(dead.delete("a"))
                self.assertIsNone(dead.delete_many(["a"]))
                self.assertEqual(dead.get_or_set("a", 5), 5)
                self.assertEqual(made_by_one("a", lambda: 6, 10), 6)
                with self.assertRaises(ValueError):
                    dead.incr("a")
                self.assertEqual(len(logged.output), 1, logged.output)

    def test_the_site_answers(self):
        with override_settings(CACHES=settings_for("Memcached", 1)):
            self.assertEqual(self.client.get("/").status_code, 200)


class LiveCacheTests(SimpleTestCase):
    def check(self, kind):
        server = Server(kind)
        self.addCleanup(server.stop)
        Forgiving._logged = -1e9
        with override_settings(CACHES=settings_for(kind, server.port)):
            live = caches["default"]
            live.set("a", {"b": [1]}, 30)
            self.assertEqual(live.get("a"), {"b": [1]})
            live.set("n", 1)
            self.assertEqual(live.incr("n"), 2)
            self.assertTrue(live.add("fresh", 1))
            self.assertFalse(live.add("fresh", 2))
            server.stop()
            with self.assertLogs("newsroom.cache", "WARNING"):
                self.assertIsNone(live.get("a"))
            server.start()

            def works_again():
                live.set("c", 3)
                return live.get("c") == 3

            wait_until(works_again)

    @unittest.skipUnless(shutil.which("memcached"), "memcached is not installed")
    def test_memcached_goes_and_comes_back(self):
        self.check("Memcached")

    @unittest.skipUnless(shutil.which("redis-server"), "redis-server is not installed")
    def test_redis_goes_and_comes_back(self):
        self.check("Redis")

    def test_what_is_stored_together_does_not_expire_together(self):
        for kind in ("Memcached", "Redis"):
            with self.subTest(kind), override_settings(CACHES=settings_for(kind, 1)):
                times = {caches["default"].get_backend_timeout(1000) for _ in range(100)}
                self.assertGreater(len(times), 20)
                self.assertTrue(all(900 <= seconds <= 1000 for seconds in times), times)
                self.assertIn(caches["default"].get_backend_timeout(None), (None, 0))


class MadeByOneTests(SimpleTestCase):
    def setUp(self):
        cache.clear()
        self.made = 0

    def make(self):
        self.made += 1
        return self.made

    def test_kept_while_it_is_fresh(self):
        self.assertEqual([made_by_one("x", self.make, 60) for _ in range(3)], [1, 1, 1])

    def test_one_makes_it_anew_and_nobody_waits(self):
        made_by_one("x", self.make, -1)
        release = threading.Event()

        def slowly():
            release.wait(10)
            return self.make()

        maker = threading.Thread(target=made_by_one, args=("x", slowly, 60))
        maker.start()
        self.addCleanup(maker.join)
        self.addCleanup(release.set)
        wait_until(lambda: cache.get("x:making"))
        self.assertEqual([made_by_one("x", self.make, 60) for _ in range(5)], [1] * 5)
        release.set()
        maker.join()
        self.assertEqual(made_by_one("x", self.make, 60), 2)
        self.assertEqual(self.made, 2)
