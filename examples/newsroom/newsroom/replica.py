"""
Reading from a replica: strangers read there, everybody else reads what they have just written.

In use when DATABASES has a "replica" (REPLICA_URL). A replica is behind by some milliseconds or,
on a bad day, minutes: whoever is logged in, and every request that may write, stays on the
primary. So does what runs outside of requests.
"""

from contextvars import ContextVar

from django.conf import settings

_alias = ContextVar("database_for_reading", default="default")


def choose_database(get_response):
    """Middleware: send the reads of strangers' GET requests to the replica."""

    def middleware(request):
        reads = request.method in ("GET", "HEAD") and request.is_stranger
        if not reads or "replica" not in settings.DATABASES:
            return get_response(request)
        token = _alias.set("replica")
        try:
            return get_response(request)
        finally:
            _alias.reset(token)

    return middleware


class Router:
    """Django's database router."""

    def db_for_read(self, model, **hints):
        return _alias.get()

    def db_for_write(self, model, **hints):
        # Once something is written, the rest of the request reads it.
        _alias.set("default")
        return "default"

    def allow_relation(self, one, other, **hints):
        return True

    def allow_migrate(self, db, app_label, **hints):
        return db == "default"
