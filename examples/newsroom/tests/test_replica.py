"""Who reads where when there is a replica."""

from unittest.mock import patch

from django.conf import settings
from django.http import HttpResponse
from django.test import RequestFactory, SimpleTestCase

from articles.models import Article
from newsroom.replica import Router, choose_database

router = Router()


class ReplicaTests(SimpleTestCase):
    def reads(self, method="GET", stranger=True, replica=True, write=False):
        """Which database a request reads from."""
        found = []

        def view(request):
            if write:
                router.db_for_write(Article)
            found.append(router.db_for_read(Article))
            return HttpResponse()

        request = RequestFactory().generic(method, "/")
        request.is_stranger = stranger
        # Nothing connects: only the names are looked at.
        with patch.dict(settings.DATABASES, {"replica": {}} if replica else {}):
            choose_database(view)(request)
        self.assertEqual(router.db_for_read(Article), "default", "the request is over")
        return found[0]

    def test_strangers_read_the_replica(self):
        self.assertEqual(self.reads(), "replica")
        self.assertEqual(self.reads(method="HEAD"), "replica")

    def test_everybody_else_the_primary(self):
        self.assertEqual(self.reads(stranger=False), "default")
        self.assertEqual(self.reads(method="POST"), "default")

    def test_what_was_written_is_read(self):
        self.assertEqual(self.reads(write=True), "default")

    def test_without_a_replica_there_is_one_database(self):
        self.assertEqual(self.reads(replica=False), "default")

    def test_only_the_primary_is_migrated(self):
        self.assertTrue(router.allow_migrate("default", "articles"))
        self.assertFalse(router.allow_migrate("replica", "articles"))
