"""
/health/: is this app server well? For balancers, accelerators and deploys.

200 with {"release": …, "database": "ok", "cache": "ok"}; 503 if the site can't work, with what is
down. A cache that is down is named but is no reason for a 503: the site answers without it, and
taking every app host out of the pool for it would be the outage that the cache isn't.
"""

import logging
import uuid

from django.conf import settings
from django.core.cache import cache
from django.db import DatabaseError, connections
from django.http import HttpResponseNotAllowed, JsonResponse

PATH = "/health/"
logger = logging.getLogger(__name__)


def answer(get_response):
    """Middleware that answers /health/ for any host name, without a session."""

    def middleware(request):
        if request.path != PATH:
            return get_response(request)
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET", "HEAD"])
        found = {"release": settings.RELEASE}
        found |= {_label(alias): _database(alias) for alias in connections}
        found["cache"] = _cache()
        down = any(found[_label(alias)] != "ok" for alias in connections)
        response = JsonResponse(found, status=503 if down else 200)
        response["Cache-Control"] = "no-store"
        return response

    return middleware


def _label(alias):
    return "database" if alias == "default" else alias


def _database(alias):
    try:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError as error:
        logger.error("health: database %s: %s", alias, error)
        return "down"
    return "ok"


def _cache():
    if settings.CACHES["default"]["BACKEND"].endswith("DummyCache"):
        return "off"
    # A key of its own each time: spread over the servers, and never another check's.
    key = f"health:{uuid.uuid4().hex}"
    cache.set(key, "ok", 10)
    return cache.get(key, "down")
