"""The articles: everything that readers and editors see."""

from django.apps import AppConfig


class ArticlesConfig(AppConfig):
    name = "articles"
