"""What stands beside every readers' page. Costly to count, so it is counted by one for all."""

from django import template
from django.db.models import Count

from articles.models import Article, Section
from newsroom.caching import made_by_one

register = template.Library()


@register.inclusion_tag("articles/sidebar.html")
def sidebar():
    return made_by_one("sidebar", _count, 60)


def _count():
    discussed = (
        Article.objects.published()
        .annotate(comment_count=Count("comments"))
        .order_by("-comment_count", "-published")
        .only("title", "slug")[:5]
    )
    sections = Section.objects.annotate(article_count=Count("articles")).order_by("position")
    return {"discussed": list(discussed), "sections": list(sections)}
