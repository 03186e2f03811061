"""The newsroom: the project. Loads its Celery application, so that views can queue tasks."""

from newsroom.celery import app as celery_app

__all__ = ["celery_app"]
