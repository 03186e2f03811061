"""
Settings of a real server: base, and what the environment says. README.md lists the variables.

A required variable that is missing stops the site with a sentence that names it.
"""

import os

import environ
from django.core.exceptions import ImproperlyConfigured
from django.core.files.storage import FileSystemStorage

from newsroom.mysql import adapted
from newsroom.settings.base import *  # noqa: F403 - settings are layered this way
from newsroom.settings.base import (
    BASE_DIR,
    CELERY_BROKER_CONNECTION_TIMEOUT,
    CELERY_TASK_TIME_LIMIT,
    LOGGING,
    RELEASE,
)

env = environ.Env()

RELEASE = env("RELEASE", default=RELEASE)
# Not through env(), which takes a leading "$" for the name of another variable.
SECRET_KEY = os.environ.get("SECRET_KEY")
if not SECRET_KEY:
    raise ImproperlyConfigured("Set the SECRET_KEY environment variable")
# Older keys whose sessions and links stay valid while a new key takes over.
SECRET_KEY_FALLBACKS = env.list("SECRET_KEY_FALLBACKS", default=[])
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS")

# Database. A host whose plug is pulled is given up after seconds, not after minutes.
DATABASE_DEFAULTS = {
    "CONN_MAX_AGE": env.int("CONN_MAX_AGE", default=300),
    "CONN_HEALTH_CHECKS": True,
    # Behind a pooler a cursor doesn't outlive its transaction.
    "DISABLE_SERVER_SIDE_CURSORS": env.bool("DISABLE_SERVER_SIDE_CURSORS", default=False),
}
POSTGRES_OPTIONS = {"connect_timeout": 3, "tcp_user_timeout": 10_000}


def database(variable):
    """What DATABASES says of the database whose URL stands in an environment variable."""
    found = DATABASE_DEFAULTS | env.db_url(variable)
    if found["ENGINE"].endswith("postgresql"):
        found["OPTIONS"] = POSTGRES_OPTIONS | found.get("OPTIONS", {})
    return adapted(found)


DATABASES = {"default": database("DATABASE_URL")}
if env("REPLICA_URL", default=""):
    DATABASES["replica"] = database("REPLICA_URL") | {"TEST": {"MIRROR": "default"}}

# Cache: memcached (pymemcache://127.0.0.1:22122) or Redis (redis://...). Without one nothing is
# kept: memory of one process would differ from that of the next.
CACHE_BACKENDS = {
    "django.core.cache.backends.memcached.PyMemcacheCache": {
        "BACKEND": "newsroom.cache.Memcached",
        # Seconds. A dead server is left alone for dead_timeout: requests don't wait for it.
        "OPTIONS": {"connect_timeout": 0.5, "timeout": 1, "retry_attempts": 0, "dead_timeout": 2},
    },
    "django.core.cache.backends.redis.RedisCache": {
        "BACKEND": "newsroom.cache.Redis",
        "OPTIONS": {"socket_connect_timeout": 0.5, "socket_timeout": 1},
    },
}


def cache(variable):
    """What CACHES says of the cache whose URL stands in an environment variable, if it does."""
    found = env.cache_url(variable, default="dummycache://")
    return {
        **found,
        **CACHE_BACKENDS.get(found["BACKEND"], {}),
        "KEY_PREFIX": env("CACHE_PREFIX", default="newsroom"),
        # Another version makes everything of this site a miss and leaves other sites alone.
        "VERSION": env.int("CACHE_VERSION", default=1),
        "TIMEOUT": 300,
    }


CACHES = {"default": cache("CACHE_URL")}
if env("SESSION_REDIS_URL", default=""):
    CACHES["sessions"] = cache("SESSION_REDIS_URL")
    SESSION_CACHE_ALIAS = "sessions"

# Several brokers stand one after the other, with ";" between them.
CELERY_BROKER_URL = env("BROKER_URL", default=None)
if env("BROKER_PREFIX", default=""):
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        # Several sites share a Redis.
        "global_keyprefix": env("BROKER_PREFIX"),
        # Seconds after which Redis gives a task of a lost worker to another one: above the
        # longest task, or it would run twice at once.
        "visibility_timeout": 2 * CELERY_TASK_TIME_LIMIT,
        # Its host may be gone without a word: else who asks it waits for two minutes.
        "socket_connect_timeout": CELERY_BROKER_CONNECTION_TIMEOUT,
        "socket_timeout": 10,
    }
if env("BROKER_QUEUE_TYPE", default="classic") == "quorum":
    CELERY_TASK_DEFAULT_QUEUE_TYPE = CELERY_TASK_CREATE_MISSING_QUEUE_TYPE = "quorum"
    # Tasks for later wait in the broker, which reaches only queues behind topic exchanges.
    CELERY_TASK_DEFAULT_EXCHANGE_TYPE = "topic"
    CELERY_TASK_CREATE_MISSING_QUEUE_EXCHANGE_TYPE = "topic"

# Files
STATIC_ROOT = env("STATIC_ROOT")
STATIC_URL = env("STATIC_URL", default="/static/")
MEDIA_ROOT = env("MEDIA_ROOT")
MEDIA_URL = env("MEDIA_URL", default="/media/")
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        # Names hold a hash of the contents, so browsers may keep them for ever.
        "BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage",
        # STATIC_ROOT is shared by releases; which files a release means is its own affair.
        "OPTIONS": {"manifest_storage": FileSystemStorage(location=BASE_DIR)},
    },
}

# Mail: through the host's own relay unless told otherwise.
vars().update(env.email_url("EMAIL_URL", default="smtp://localhost:25"))
EMAIL_TIMEOUT = 10
DEFAULT_FROM_EMAIL = SERVER_EMAIL = env("FROM_EMAIL", default=f"newsroom@{ALLOWED_HOSTS[0]}")

# HTTPS. The balancer overwrites this header, so it can be believed.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SILENCED_SYSTEM_CHECKS = [
    # HSTS and the redirect to HTTPS are the balancer's: an accelerator would give a redirect
    # made here to clients that use HTTPS already.
    "security.W004",
    "security.W008",
]
# on: cookies travel over HTTPS only. off: plain HTTP was decided for. Not set: nobody decided,
# and `manage.py check --deploy` warns.
FORCE_HTTPS = env.bool("FORCE_HTTPS", default=None)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = bool(FORCE_HTTPS)
if FORCE_HTTPS is False:
    SILENCED_SYSTEM_CHECKS += ["security.W012", "security.W016"]

ENABLE_SLOW = env.bool("ENABLE_SLOW", default=False)
LOGGING["root"]["level"] = env("LOG_LEVEL", default="INFO")
