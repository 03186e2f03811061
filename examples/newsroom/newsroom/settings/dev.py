"""Settings of a developer's checkout and of the tests: no variable needed. Never for a server."""

import environ

from newsroom.mysql import adapted
from newsroom.settings.base import *  # noqa: F403 - settings are layered this way
from newsroom.settings.base import BASE_DIR

env = environ.Env()

DEBUG = True
SECRET_KEY = "for-development-only"  # it guards nothing
ALLOWED_HOSTS = ["*"]
DATABASES = {
    "default": adapted(env.db_url("DATABASE_URL", default=f"sqlite:///{BASE_DIR}/db.sqlite3"))
}
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
STATIC_ROOT = BASE_DIR / "var" / "static"
MEDIA_ROOT = BASE_DIR / "var" / "media"
EMAIL_BACKEND = "django.core.mail.backends.console.EmailBackend"
ENABLE_SLOW = True
