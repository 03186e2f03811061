"""Background work, through a real Celery worker and a broker in memory."""

import io
import os
import signal
import threading
import time
from datetime import timedelta

from celery.contrib.testing.worker import start_worker
from django.contrib.auth import get_user_model
from django.core import mail
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.test import TestCase, TransactionTestCase, override_settings
from django.utils import timezone

from articles.management.commands.watch_published import look
from articles.models import Article, Comment, Digest
from articles.tasks import later, notify_author, notify_missed, write_digest
from newsroom.celery import app
from tests.server import run


def add_comment(**more):
    call_command("seed", articles=1, stdout=io.StringIO())
    reader = get_user_model().objects.get(username="reader")
    return Comment.objects.create(
        article=Article.objects.get(), user=reader, text="Is it true?", **more
    )


class NotifyTests(TestCase):
    def test_an_author_is_told_once_however_often_the_task_runs(self):
        comment = add_comment()
        for _ in range(3):
            notify_author(comment.pk)
        self.assertEqual(len(mail.outbox), 1)
        self.assertEqual(mail.outbox[0].to, [comment.article.author.email])
        self.assertIn("reader commented on", mail.outbox[0].subject)

    def test_a_comment_that_is_gone_is_no_error(self):
        notify_author(12345)
        self.assertEqual(mail.outbox, [])


class DigestTests(TestCase):
    def test_the_most_discussed_first_and_written_once(self):
        call_command("seed", articles=30, stdout=io.StringIO())
        for _ in range(2):
            write_digest("2024-12-31")
        lines = Digest.objects.get().text.splitlines()
        counts = [int(line.rsplit("(")[-1].split()[0]) for line in lines]
        self.assertGreater(len(lines), 5)
        self.assertEqual(counts, sorted(counts, reverse=True))
        self.assertContains(self.client.get("/digest/"), lines[0])

    def test_yesterday_if_not_told(self):
        write_digest()
        digest = Digest.objects.get()
        self.assertEqual(digest.day, timezone.localdate() - timedelta(days=1))
        self.assertEqual(digest.text, "Nothing was published.")

    def test_by_hand(self):
        call_command("digest", "2024-12-31", stdout=io.StringIO())
        self.assertEqual(str(Digest.objects.get()), "Digest of 2024-12-31")
        with self.assertRaisesMessage(CommandError, "is not a day"):
            call_command("digest", "tomorrow")


class WatchTests(TestCase):
    def test_what_came_out_is_told_once_and_the_sidebar_made_anew(self):
        call_command("seed", articles=2, stdout=io.StringIO())
        now = timezone.now()
        article = Article.objects.first()
        Article.objects.filter(pk=article.pk).update(published=now - timedelta(seconds=1))
        cache.set("sidebar", "old")
        with self.assertLogs("articles.management.commands.watch_published") as logged:
            until = look(now - timedelta(seconds=2))
        self.assertEqual([line.rpartition(": ")[2] for line in logged.output], [article.title])
        self.assertIsNone(cache.get("sidebar"))
        with self.assertNoLogs("articles.management.commands.watch_published"):
            look(until)


class WatchingTests(TransactionTestCase):
    def test_it_ends_when_it_is_told_to(self):
        self.addCleanup(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        terminate = threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGTERM])
        terminate.start()
        self.addCleanup(terminate.join)
        call_command("watch_published", every=0.1)


class QueueTests(TestCase):
    def test_without_a_broker_it_is_said_that_nothing_is_queued(self):
        article = add_comment().article
        self.client.force_login(get_user_model().objects.get(username="reader"))
        with (
            self.assertLogs("articles.tasks", "INFO") as logged,
            self.captureOnCommitCallbacks(execute=True),
        ):
            response = self.client.post(f"{article.get_absolute_url()}comments/", {"text": "Hm."})
        self.assertEqual(response.status_code, 302)
        self.assertIn("BROKER_URL is not set", logged.output[0])

    def test_a_dead_broker_fails_no_request_and_holds_none_up(self):
        code = (
            "import time\n"
            "from articles.tasks import later, notify_author\n"
            "started = time.monotonic()\n"
            "later(notify_author, 1)\n"
            "print(time.monotonic() - started)\n"
        )
        for url in ("amqp://me:secret-word@127.0.0.1:1//", "redis://:secret-word@127.0.0.1:1/0"):
            with self.subTest(url):
                done = run(code, BROKER_URL=url)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertIn("isn't queued", done.stderr)
                self.assertNotIn("secret-word", done.stderr)
                self.assertLess(float(done.stdout), 5)


class WorkerTests(TransactionTestCase):
    def test_a_missed_comment_is_found_and_its_author_told_by_the_worker(self):
        now = timezone.now()
        add_comment(created=now - timedelta(hours=1))
        add_comment(created=now - timedelta(days=3))
        broker = override_settings(CELERY_BROKER_URL="memory://")
        app.conf.broker_url = "memory://"
        self.addCleanup(setattr, app.conf, "broker_url", None)
        with broker:
            notify_missed()
            later(write_digest, "2024-12-31")
            with start_worker(app, pool="solo", perform_ping_check=False, queues=["high", "low"]):
                end = time.monotonic() + 10
                while not (mail.outbox and Digest.objects.exists()):
                    self.assertLess(time.monotonic(), end, "The worker did nothing")
                    time.sleep(0.05)
        self.assertEqual(len(mail.outbox), 1)
        self.assertEqual(Comment.objects.exclude(notified=None).count(), 1)
