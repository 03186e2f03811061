"""Addresses of the readers' pages."""

from django.urls import path

from articles import views

urlpatterns = [
    path("", views.ArticleList.as_view(), name="home"),
    path("sections/<slug:slug>/", views.ArticleList.as_view(), name="section"),
    path("articles/<slug:slug>/", views.ArticleDetail.as_view(), name="article"),
    path("articles/<slug:slug>/comments/", views.add_comment, name="add_comment"),
    path("articles/<slug:slug>/photos/", views.add_photo, name="add_photo"),
    path("digest/", views.LatestDigest.as_view(), name="digest"),
]
