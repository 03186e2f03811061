"""What the newsroom keeps: sections, authors, articles, their comments and photos, the digests."""

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import FileExtensionValidator
from django.db import models
from django.urls import reverse
from django.utils import timezone


class Section(models.Model):
    name = models.CharField(max_length=60)
    slug = models.SlugField(max_length=60, unique=True)
    position = models.PositiveSmallIntegerField(default=0)

    class Meta:
        ordering = ["position", "name"]

    def __str__(self):
        return self.name

    def get_absolute_url(self):
        return reverse("section", args=[self.slug])


class Author(models.Model):
    name = models.CharField(max_length=120)
    slug = models.SlugField(max_length=120, unique=True)
    email = models.EmailField(blank=True, help_text="Told about comments.")
    about = models.CharField(max_length=300, blank=True)

    class Meta:
        ordering = ["name"]

    def __str__(self):
        return self.name


class ArticleQuerySet(models.QuerySet):
    def published(self):
        return self.filter(published__lte=timezone.now())

    def for_list(self):
        """One query for a list of articles with their sections, authors and comment counts."""
        comments = (
            Comment.objects.filter(article=models.OuterRef("pk"))
            .order_by()
            .values("article")
            .annotate(count=models.Count("pk"))
            .values("count")
        )
        return (
            self.published()
            .select_related("section", "author")
            .defer("body")
            .annotate(comment_count=models.functions.Coalesce(models.Subquery(comments), 0))
        )

    def for_detail(self):
        """An article and its comments in two queries. Photos are read when they are drawn."""
        comments = models.Prefetch("comments", queryset=Comment.objects.select_related("user"))
        return self.published().select_related("section", "author").prefetch_related(comments)


class Article(models.Model):
    section = models.ForeignKey(Section, on_delete=models.PROTECT, related_name="articles")
    author = models.ForeignKey(Author, on_delete=models.PROTECT, related_name="articles")
    title = models.CharField(max_length=200)
    slug = models.SlugField(max_length=200, unique=True)
    lead = models.CharField(max_length=400)
    body = models.TextField()
    published = models.DateTimeField(default=timezone.now, db_index=True)
    updated = models.DateTimeField(auto_now=True)

    objects = ArticleQuerySet.as_manager()

    class Meta:
        ordering = ["-published", "-pk"]
        indexes = [models.Index(fields=["section", "-published"])]

    def __str__(self):
        return self.title

    def get_absolute_url(self):
        return reverse("article", args=[self.slug])


class Comment(models.Model):
    article = models.ForeignKey(Article, on_delete=models.CASCADE, related_name="comments")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    text = models.TextField(max_length=2000)
    created = models.DateTimeField(default=timezone.now, db_index=True)
    # When the article's author was told; see articles/tasks.py.
    notified = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        ordering = ["created", "pk"]

    def __str__(self):
        return f"{self.user} on {self.article}"


def check_photo_size(file):
    if file.size > settings.PHOTO_MAX_BYTES:
        raise ValidationError(f"A photo may have {settings.PHOTO_MAX_BYTES // 2**20} MB at most.")


class Photo(models.Model):
    article = models.ForeignKey(Article, on_delete=models.CASCADE, related_name="photos")
    # The extension decides how nginx serves the file; Pillow checks that it is an image.
    image = models.ImageField(
        upload_to="photos/%Y/%m/",
        validators=[FileExtensionValidator(["jpg", "jpeg", "png", "webp"]), check_photo_size],
    )
    caption = models.CharField(max_length=200, blank=True)
    added = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["added", "pk"]

    def __str__(self):
        return self.caption or self.image.name

    def save(self, *args, **kwargs):
        super().save(*args, **kwargs)
        # The page's fragments are kept under the time of the last change.
        self.article.save(update_fields=["updated"])


class Digest(models.Model):
    """A day in short, written by a background task."""

    day = models.DateField(unique=True)
    text = models.TextField()

    class Meta:
        ordering = ["-day"]

    def __str__(self):
        return f"Digest of {self.day}"
