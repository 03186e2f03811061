"""What is the same on every machine. Nothing here is secret and nothing reads the environment."""

from pathlib import Path

from celery.schedules import crontab

BASE_DIR = Path(__file__).resolve().parent.parent.parent

DEBUG = False
# Which code this is: a release lives in a folder of its name.
RELEASE = BASE_DIR.name

INSTALLED_APPS = [
    "articles",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]

MIDDLEWARE = [
    "newsroom.middleware.request_id",
    # Before anything that needs a known host name, a session or the database.
    "newsroom.health.answer",
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.http.ConditionalGetMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "newsroom.middleware.strangers_are_anonymous",
    "newsroom.replica.choose_database",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "newsroom.urls"
WSGI_APPLICATION = "newsroom.wsgi.application"
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "/"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "newsroom" / "templates"],
        # Loads from APP_DIRS; outside of DEBUG Django keeps compiled templates in memory.
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASE_ROUTERS = ["newsroom.replica.Router"]

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_I18N = False

STATICFILES_DIRS = [BASE_DIR / "newsroom" / "static"]
STATIC_URL = "/static/"
MEDIA_URL = "/media/"
# nginx serves both, as a user of its own.
FILE_UPLOAD_PERMISSIONS = 0o644
FILE_UPLOAD_DIRECTORY_PERMISSIONS = 0o755
# Largest photo, in bytes.
PHOTO_MAX_BYTES = 10 * 1024 * 1024

# Sessions are read from the cache and kept in the database: a lost cache logs nobody out.
SESSION_ENGINE = "django.contrib.sessions.backends.cached_db"

# Seconds that the accelerator may keep a page that is the same for every stranger.
PUBLIC_SECONDS = 20
# Answer /slow/ (for load tests)?
ENABLE_SLOW = False

# Background work. Without a broker nothing is queued: see articles/tasks.py.
CELERY_BROKER_URL = None
CELERY_TIMEZONE = TIME_ZONE
CELERY_TASK_IGNORE_RESULT = True
# A task is given back to the queue if its worker dies, so every task must bear being run twice.
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
# Seconds: a task is asked to end, then ended; a stopping worker waits for its tasks.
CELERY_TASK_SOFT_TIME_LIMIT = 240
CELERY_TASK_TIME_LIMIT = 300
CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT = 30
CELERY_TASK_DEFAULT_QUEUE = "low"
CELERY_TASK_ROUTES = {"articles.tasks.notify_author": {"queue": "high"}}
CELERY_BEAT_SCHEDULE = {
    "digest": {"task": "articles.tasks.write_digest", "schedule": crontab(hour=4, minute=0)},
    "missed": {"task": "articles.tasks.notify_missed", "schedule": crontab(minute="*/10")},
}
# A request that queues a task doesn't wait long for a broker that is down.
CELERY_TASK_PUBLISH_RETRY_POLICY = {"max_retries": 1, "interval_start": 0.1}
CELERY_BROKER_CONNECTION_TIMEOUT = 2
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
# The broker confirms that it has a task (RabbitMQ; others ignore it).
CELERY_BROKER_TRANSPORT_OPTIONS = {"confirm_publish": True}
# Logging is Django's, for workers too.
CELERY_WORKER_HIJACK_ROOT_LOGGER = False

# One line each to stderr, with the id that the balancer gave the request.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"request_id": {"()": "newsroom.logs.RequestId"}},
    "formatters": {
        "line": {
            "()": "newsroom.logs.OneLine",
            "format": "%(levelname)s %(name)s [%(request_id)s] %(message)s",
        },
    },
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "filters": ["request_id"],
            "formatter": "line",
        },
    },
    "root": {"handlers": ["stderr"], "level": "INFO"},
    # Django would mail its errors and, in development, print each twice.
    "loggers": {"django": {"handlers": [], "level": "NOTSET", "propagate": True}},
}
