"""manage.py digest: write the digest of a day here and now, without a worker."""

from datetime import date

from django.core.management.base import BaseCommand, CommandError

from articles.tasks import write_digest


class Command(BaseCommand):
    help = "Write the digest of a day."

    def add_arguments(self, parser):
        parser.add_argument("day", nargs="?", help="YYYY-MM-DD; yesterday if not given")

    def handle(self, *args, day, **options):
        try:
            date.fromisoformat(day or "2000-01-01")
        except ValueError as error:
            raise CommandError(f"{day!r} is not a day: write YYYY-MM-DD.") from error
        write_digest(day)
        self.stdout.write(f"Wrote the digest of {day or 'yesterday'}.")
