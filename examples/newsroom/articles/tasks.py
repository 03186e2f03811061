"""
Background work.

Every task may run twice (a worker that dies gives its task back) and leaves the same result: what
is done is marked in the database.
"""

import logging
from datetime import date, timedelta

from celery import shared_task
from django.conf import settings
from django.core.mail import send_mail
from django.db.models import Count
from django.utils import timezone
from kombu.exceptions import OperationalError

from articles.models import Article, Comment, Digest

logger = logging.getLogger(__name__)


def later(task, *args):
    """
    Queue a task, if that can be done. A request never fails because the broker is away.

    Whatever is called here must be found again by a periodic task: `notify_missed` for comments.
    """
    if not settings.CELERY_BROKER_URL:
        logger.info("%s%s isn't queued: BROKER_URL is not set.", task.name, args)
        return
    try:
        task.delay(*args)
    except OperationalError as error:
        logger.error("%s%s isn't queued: %s", task.name, args, error)


@shared_task(autoretry_for=(OSError,), retry_backoff=True, max_retries=5)
def notify_author(comment_id):
    """Mail an article's author about a comment."""
    comment = (
        Comment.objects.select_related("article__author", "user")
        .filter(pk=comment_id, notified=None)
        .first()
    )
    if comment is None:
        return
    author = comment.article.author
    if author.email:
        subject = f"{comment.user} commented on {comment.article.title}"
        send_mail(subject, comment.text, None, [author.email])
    Comment.objects.filter(pk=comment_id).update(notified=timezone.now())


@shared_task
def notify_missed():
    """Queue again what a broker or a mail server that was down has swallowed."""
    now = timezone.now()
    missed = Comment.objects.filter(
        notified=None, created__range=(now - timedelta(days=1), now - timedelta(minutes=10))
    )
    for pk in missed.values_list("pk", flat=True):
        later(notify_author, pk)


@shared_task
def write_digest(day=None):
    """
    Write the digest of a day: its articles, the most discussed first.

    day
        As YYYY-MM-DD; yesterday if not given.
    """
    day = date.fromisoformat(day) if day else timezone.localdate() - timedelta(days=1)
    articles = (
        Article.objects.published()
        .filter(published__date=day)
        .annotate(comment_count=Count("comments"))
        .order_by("-comment_count", "pk")
    )
    lines = [f"{article.title} ({article.comment_count} comments)" for article in articles]
    text = "\n".join(lines) or "Nothing was published."
    Digest.objects.update_or_create(day=day, defaults={"text": text})
