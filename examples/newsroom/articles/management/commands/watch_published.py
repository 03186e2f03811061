"""manage.py watch_published: run all the time and tell which articles come out, as they do."""

import logging
import signal
import threading

from django.core.cache import cache
from django.core.management.base import BaseCommand
from django.db import close_old_connections
from django.utils import timezone

from articles.models import Article

logger = logging.getLogger(__name__)


class Command(BaseCommand):
    help = "Tell which articles come out, as they do, and let the sidebar be made anew."

    def add_arguments(self, parser):
        parser.add_argument("--every", type=float, default=2, help="seconds between two looks")

    def handle(self, *args, every, **options):
        stop = threading.Event()
        # A look ends before the program does.
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        since = timezone.now()
        while not stop.wait(every):
            # As at the end of a request: a connection that broke is made anew.
            close_old_connections()
            since = look(since)


def look(since):
    """Tell what was published after `since`. Returns until when that was."""
    now = timezone.now()
    out = list(Article.objects.filter(published__gt=since, published__lte=now))
    for article in out:
        logger.info("Published: %s", article)
    if out:
        cache.delete("sidebar")
    return now
