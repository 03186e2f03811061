"""The editors' pages."""

from django.contrib import admin

from articles.models import Article, Author, Comment, Digest, Photo, Section


class PhotoInline(admin.TabularInline):
    model = Photo
    extra = 0
    exclude = ["added"]


@admin.register(Article)
class ArticleAdmin(admin.ModelAdmin):
    list_display = ["title", "section", "author", "published"]
    list_filter = ["section", "published"]
    list_select_related = ["section", "author"]
    search_fields = ["title", "lead"]
    prepopulated_fields = {"slug": ["title"]}
    autocomplete_fields = ["author"]
    date_hierarchy = "published"
    inlines = [PhotoInline]


@admin.register(Section)
class SectionAdmin(admin.ModelAdmin):
    list_display = ["name", "position"]
    prepopulated_fields = {"slug": ["name"]}


@admin.register(Author)
class AuthorAdmin(admin.ModelAdmin):
    list_display = ["name", "email"]
    search_fields = ["name"]
    prepopulated_fields = {"slug": ["name"]}


@admin.register(Comment)
class CommentAdmin(admin.ModelAdmin):
    list_display = ["article", "user", "created"]
    list_select_related = ["article", "user"]
    raw_id_fields = ["article", "user"]
    search_fields = ["text"]


admin.site.register(Digest)
