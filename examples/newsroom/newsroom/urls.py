"""Every address of the site. /health/ is answered earlier, by newsroom/health.py."""

from django.conf import settings
from django.conf.urls.static import static
from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import include, path

from newsroom.slow import slow

urlpatterns = [
    path("admin/", admin.site.urls),
    path("login/", LoginView.as_view(), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("slow/", slow),
    path("", include("articles.urls")),
    # In development only; elsewhere nginx serves uploads.
    *static(settings.MEDIA_URL, document_root=getattr(settings, "MEDIA_ROOT", None)),
]
