"""The readers' pages."""

from django.contrib.auth.decorators import login_required, permission_required
from django.db import transaction
from django.http import Http404
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.decorators import method_decorator
from django.views.decorators.http import require_POST
from django.views.generic import DetailView, ListView

from articles.forms import CommentForm, PhotoForm
from articles.models import Article, Digest, Section
from articles.tasks import later, notify_author
from newsroom.caching import public_page


@method_decorator(public_page, name="dispatch")
class ArticleList(ListView):
    """The newest articles, of all sections or of one."""

    paginate_by = 20
    template_name = "articles/list.html"
    context_object_name = "articles"
    section = None

    def get_queryset(self):
        articles = Article.objects.for_list()
        if "slug" not in self.kwargs:
            return articles
        self.section = get_object_or_404(Section, slug=self.kwargs["slug"])
        return articles.filter(section=self.section)

    def get_context_data(self, **kwargs):
        return super().get_context_data(section=self.section, **kwargs)


@method_decorator(public_page, name="dispatch")
class ArticleDetail(DetailView):
    """An article with its photos and comments; who is logged in may comment."""

    template_name = "articles/detail.html"

    def get_queryset(self):
        return Article.objects.for_detail()

    def get_context_data(self, **kwargs):
        return super().get_context_data(form=CommentForm(), **kwargs)


@require_POST
@login_required
def add_comment(request, slug):
    article = get_object_or_404(Article.objects.for_detail(), slug=slug)
    form = CommentForm(request.POST)
    if not form.is_valid():
        return render(request, "articles/detail.html", {"article": article, "form": form})
    form.instance.article, form.instance.user = article, request.user
    with transaction.atomic():
        comment = form.save()
        # Not before it is committed: the worker would look for it too early.
        transaction.on_commit(lambda: later(notify_author, comment.pk))
    return redirect(f"{article.get_absolute_url()}#comment-{comment.pk}")


@permission_required("articles.add_photo", raise_exception=True)
def add_photo(request, slug):
    article = get_object_or_404(Article, slug=slug)
    form = PhotoForm(request.POST or None, request.FILES or None)
    if request.method == "POST" and form.is_valid():
        form.instance.article = article
        form.save()
        return redirect(article)
    return render(request, "articles/add_photo.html", {"article": article, "form": form})


@method_decorator(public_page, name="dispatch")
class LatestDigest(DetailView):
    template_name = "articles/digest.html"

    def get_object(self, queryset=None):
        digest = Digest.objects.first()
        if digest is None:
            raise Http404("No digest has been written yet.")
        return digest
