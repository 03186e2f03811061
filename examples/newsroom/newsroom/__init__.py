"""The newsroom: the project. Its Celery application is loaded with it, so that views can call tasks."""

from newsroom.celery import app as celery_app

__all__ = ["celery_app"]
