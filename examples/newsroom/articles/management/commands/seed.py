"""
manage.py seed: fill the newsroom with made-up articles, always the same ones.

Safe to run again: what is there is left alone. The users `editor` (staff) and `reader` are made
too; with SEED_PASSWORD in the environment that is their password, without it nobody can log in as
them until `manage.py changepassword` is run.
"""

import os
import random
from datetime import datetime, timedelta, timezone

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils.text import slugify

from articles.models import Article, Author, Comment, Section

SECTIONS = ["Harbour", "City", "Science", "Business", "Culture", "Sport"]
AUTHORS = ["Ada Brandt", "Jonas Keel", "Mira Olsen", "Tomas Reyes", "Lena Fischer", "Sam Okoro"]
WHO = ["Council", "Harbour master", "Salt works", "Lighthouse keeper", "Ferry line", "University"]
DOES = ["opens", "rebuilds", "measures", "questions", "celebrates", "rescues", "maps", "sells"]
WHAT = [
    "the old pier",
    "a tide mill",
    "the north canal",
    "its archive",
    "a night market",
    "the dunes",
]
REMARKS = [
    "Well said.",
    "I saw it with my own eyes.",
    "What will it cost?",
    "More of this, please.",
]
SENTENCES = [
    "The work began before dawn, when the tide was at its lowest.",
    "Nobody had expected so many visitors on a weekday.",
    "According to the plans, the first stage ends in spring.",
    "Residents remember a time when the water reached the market square.",
    "The figures were checked twice and came out the same.",
    "It is the third attempt in ten years, and the first with a budget.",
    "A small crowd stayed until the lamps were lit.",
    "Engineers call the result modest; everybody else calls it a wonder.",
]
NEWEST = datetime(2025, 1, 1, 8, tzinfo=timezone.utc)
USERS = {"reader": False, "editor": True}  # name → staff


class Command(BaseCommand):
    help = "Fill the newsroom with made-up articles. Safe to run again."

    def add_arguments(self, parser):
        parser.add_argument("--articles", type=int, default=200, help="how many; default 200")

    @transaction.atomic
    def handle(self, *args, articles, **options):
        if not 1 <= articles <= 100_000:
            raise CommandError("--articles must be from 1 to 100000.")
        sections = [
            Section.objects.get_or_create(
                slug=slugify(name), defaults={"name": name, "position": position}
            )[0]
            for position, name in enumerate(SECTIONS)
        ]
        authors = [
            Author.objects.get_or_create(
                slug=slugify(name),
                defaults={"name": name, "email": f"{slugify(name)}@newsroom.example"},
            )[0]
            for name in AUTHORS
        ]
        users = [self._user(name, staff) for name, staff in USERS.items()]
        made = self._articles(articles, sections, authors)
        comments = self._comments(made, users)
        self.stdout.write(f"Added {len(made)} articles and {comments} comments.")

    def _user(self, name, staff):
        user, new = get_user_model().objects.get_or_create(
            username=name, defaults={"is_staff": staff, "is_superuser": staff}
        )
        password = os.environ.get("SEED_PASSWORD")
        if password and not user.check_password(password):
            user.set_password(password)
        elif new and not password:
            user.set_unusable_password()
        user.save()
        return user

    def _articles(self, count, sections, authors):
        there = set(Article.objects.values_list("slug", flat=True))
        made = []
        for number in range(1, count + 1):
            chance = random.Random(number)  # noqa: S311 - the same article for the same number
            title = f"{chance.choice(WHO)} {chance.choice(DOES)} {chance.choice(WHAT)}"
            article = Article(
                title=title,
                slug=f"{slugify(title)}-{number}",
                section=chance.choice(sections),
                author=chance.choice(authors),
                lead=" ".join(chance.sample(SENTENCES, 2)),
                body="\n\n".join(" ".join(chance.sample(SENTENCES, 6)) for _ in range(8)),
                published=NEWEST - timedelta(hours=number),
            )
            if article.slug not in there:
                made.append(article)
        return Article.objects.bulk_create(made, batch_size=500)

    def _comments(self, articles, users):
        comments = [
            Comment(
                article=article,
                user=users[turn % len(users)],
                text=REMARKS[(position + turn) % len(REMARKS)],
                created=article.published + timedelta(minutes=10 * (turn + 1)),
                notified=article.published,
            )
            for position, article in enumerate(articles)
            for turn in range(position % 5)
        ]
        return len(Comment.objects.bulk_create(comments, batch_size=500))
