"""The readers' pages: what they show, what they cost, and that the accelerator can keep them."""

import io
import tempfile
from datetime import timedelta
from pathlib import Path

from django.contrib.auth import get_user_model
from django.core.cache import cache
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.test import Client, TestCase, override_settings
from django.urls import path
from django.utils import timezone
from PIL import Image

from articles.models import Article, Comment, Digest, Photo


def broken(request):
    raise RuntimeError("This page is broken.")


# For the test of a broken page.
urlpatterns = [path("broken/", broken)]


class SeededTestCase(TestCase):
    @classmethod
    def setUpTestData(cls):
        call_command("seed", articles=45, stdout=io.StringIO())
        cls.article = Article.objects.first()
        cls.reader = get_user_model().objects.get(username="reader")
        cls.editor = get_user_model().objects.get(username="editor")

    def setUp(self):
        cache.clear()


class PublicPageTests(SeededTestCase):
    def public_urls(self):
        Digest.objects.get_or_create(day="2025-01-01", text="Quiet.")
        return ["/", "/?page=2", "/sections/city/", self.article.get_absolute_url(), "/digest/"]

    def test_strangers_get_pages_that_can_be_kept(self):
        for url in self.public_urls():
            with self.subTest(url):
                response = self.client.get(url)
                self.assertEqual(response.status_code, 200)
                self.assertEqual(response["Cache-Control"], "public, max-age=0, s-maxage=20")
                self.assertNotIn("Vary", response)
                self.assertFalse(response.cookies)

    def test_a_strangers_other_cookies_change_nothing(self):
        self.client.cookies["csrftoken"] = "a" * 32
        response = self.client.get("/")
        self.assertIn("public", response["Cache-Control"])
        self.assertNotIn("Vary", response)

    def test_what_is_made_for_somebody_is_private(self):
        self.client.force_login(self.reader)
        for url in self.public_urls():
            with self.subTest(url):
                response = self.client.get(url)
                self.assertIn("private", response["Cache-Control"])
                self.assertNotIn("public", response["Cache-Control"])
                self.assertIn("Cookie", response["Vary"])
                self.assertContains(response, "Log out reader")

    def test_a_stale_session_cookie_makes_nothing_public(self):
        self.client.cookies["sessionid"] = "gone"
        self.assertNotIn("public", self.client.get("/")["Cache-Control"])

    def test_an_unchanged_page_is_not_sent_again(self):
        tag = self.client.get("/")["ETag"]
        self.assertEqual(self.client.get("/", headers={"If-None-Match": tag}).status_code, 304)

    def test_queries_do_not_grow_with_the_page(self):
        with self.assertNumQueries(4):  # count, articles, two for the sidebar
            self.client.get("/")
        with self.assertNumQueries(1):  # count; the rest is kept
            self.client.get("/")
        discussed = Article.objects.for_list().order_by("-comment_count").first()
        with self.assertNumQueries(3):  # article, comments, photos
            self.client.get(discussed.get_absolute_url())
        with self.assertNumQueries(2):
            self.client.get(discussed.get_absolute_url())

    def test_a_changed_article_shows_at_once(self):
        self.client.get(self.article.get_absolute_url())
        self.article.title = "A wholly new title"
        self.article.save()
        self.assertContains(self.client.get(self.article.get_absolute_url()), self.article.title)

    def test_what_is_not_published_yet_is_not_found(self):
        self.article.published = timezone.now() + timedelta(hours=1)
        self.article.save()
        self.assertEqual(self.client.get(self.article.get_absolute_url()).status_code, 404)

    def test_text_is_escaped(self):
        self.article.title = "<script>alert(1)</script>"
        self.article.save()
        response = self.client.get(self.article.get_absolute_url())
        self.assertNotContains(response, "<script>")

    def test_errors_have_pages_of_their_own(self):
        for url in ["/nothing/", "/?page=99", "/sections/nothing/", "/articles/nothing/"]:
            with self.subTest(url):
                response = self.client.get(url)
                self.assertContains(response, "Page not found", status_code=404)

    def test_a_broken_page_says_so_and_is_logged(self):
        self.client.raise_request_exception = False
        with override_settings(ROOT_URLCONF=__name__), self.assertLogs("django.request", "ERROR"):
            response = self.client.get("/broken/")
        self.assertContains(response, "Something broke", status_code=500)


class RequestTests(SeededTestCase):
    def test_the_request_id_is_handed_back(self):
        response = self.client.get("/", headers={"X-Request-ID": "balancer-1"})
        self.assertEqual(response["X-Request-ID"], "balancer-1")

    def test_an_id_that_could_forge_a_log_line_is_not_believed(self):
        response = self.client.get("/", headers={"X-Request-ID": "a] ERROR forged"})
        self.assertRegex(response["X-Request-ID"], r"^[0-9a-f]{32}$")

    def test_slow_is_off_unless_switched_on_and_has_a_limit(self):
        with override_settings(ENABLE_SLOW=False):
            self.assertEqual(self.client.get("/slow/?seconds=0").status_code, 404)
        with override_settings(ENABLE_SLOW=True):
            response = self.client.get("/slow/?seconds=0")
            self.assertEqual(response.json()["seconds"], 0)
            self.assertIn("no-store", response["Cache-Control"])
            for wrong in ["11", "-1", "nan", "x"]:
                self.assertEqual(self.client.get(f"/slow/?seconds={wrong}").status_code, 400)


class CommentTests(SeededTestCase):
    def post(self, client, **data):
        return client.post(f"{self.article.get_absolute_url()}comments/", data)

    def test_a_stranger_is_asked_to_log_in(self):
        self.assertRedirects(
            self.post(self.client, text="Hello"),
            f"/login/?next={self.article.get_absolute_url()}comments/",
        )
        self.assertFalse(Comment.objects.filter(text="Hello").exists())

    def test_log_in_comment_log_out_with_csrf(self):
        self.reader.set_password("only for this test")
        self.reader.save()
        client = Client(enforce_csrf_checks=True)
        client.get("/login/")
        token = client.cookies["csrftoken"].value
        login = {"username": "reader", "password": "only for this test"}
        self.assertEqual(client.post("/login/", login).status_code, 403)
        response = client.post("/login/", login | {"csrfmiddlewaretoken": token})
        self.assertRedirects(response, "/")
        self.assertContains(client.get(self.article.get_absolute_url()), "Your comment")

        self.assertEqual(self.post(client, text="Without a token").status_code, 403)
        token = client.cookies["csrftoken"].value
        response = self.post(client, text="First!", csrfmiddlewaretoken=token)
        comment = Comment.objects.get(text="First!")
        address = f"{self.article.get_absolute_url()}#comment-{comment.pk}"
        self.assertRedirects(response, address)
        self.assertContains(client.get(self.article.get_absolute_url()), "First!")

        client.post("/logout/", {"csrfmiddlewaretoken": token})
        self.assertContains(client.get("/"), "Log in")

    def test_an_empty_comment_is_refused(self):
        self.client.force_login(self.reader)
        self.assertContains(self.post(self.client, text=""), "This field is required")


class PhotoTests(SeededTestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        media = override_settings(MEDIA_ROOT=folder.name)
        media.enable()
        self.addCleanup(media.disable)
        self.media = Path(folder.name)

    def upload(self, content, name="pier.png"):
        url = f"{self.article.get_absolute_url()}photos/"
        return self.client.post(
            url, {"image": SimpleUploadedFile(name, content), "caption": "Pier"}
        )

    def png(self):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "PNG")
        return file.getvalue()

    def test_an_editor_adds_a_photo_and_it_shows_at_once(self):
        self.client.force_login(self.editor)
        self.client.get(self.article.get_absolute_url())
        self.assertRedirects(self.upload(self.png()), self.article.get_absolute_url())
        photo = Photo.objects.get()
        file = self.media / photo.image.name
        self.assertEqual(file.read_bytes(), self.png())
        self.assertEqual(file.stat().st_mode & 0o777, 0o644)
        self.assertEqual(file.parent.stat().st_mode & 0o777, 0o755)
        self.assertContains(self.client.get(self.article.get_absolute_url()), photo.image.url)

    def test_readers_may_not(self):
        self.client.force_login(self.reader)
        self.assertEqual(self.upload(self.png()).status_code, 403)
        self.assertFalse(Photo.objects.exists())

    def test_what_is_no_photo_is_refused(self):
        self.client.force_login(self.editor)
        self.assertContains(self.upload(b"<script></script>"), "valid image")
        self.assertContains(self.upload(self.png(), "page.html"), "not allowed")
        with override_settings(PHOTO_MAX_BYTES=10):
            self.assertContains(self.upload(self.png()), "at most")
        self.assertFalse(Photo.objects.exists())


class AdminTests(SeededTestCase):
    def test_lists_and_forms_open(self):
        self.client.force_login(self.editor)
        urls = [f"/admin/articles/{name}/" for name in ("article", "comment", "author", "section")]
        for url in [*urls, f"/admin/articles/article/{self.article.pk}/change/"]:
            with self.subTest(url):
                self.assertEqual(self.client.get(url).status_code, 200)


class SeedTests(TestCase):
    def seed(self, count):
        call_command("seed", articles=count, stdout=io.StringIO())
        return list(Article.objects.order_by("slug").values_list("slug", "body", "published"))

    def test_the_same_each_time_and_never_twice(self):
        few = self.seed(5)
        comments = Comment.objects.count()
        self.assertEqual(self.seed(5), few)
        self.assertEqual(Comment.objects.count(), comments)
        more = self.seed(12)
        self.assertEqual(len(more), 12)
        self.assertLess(set(few), set(more))

    def test_nobody_can_log_in_without_a_password_of_ones_own(self):
        self.seed(1)
        for user in get_user_model().objects.all():
            self.assertFalse(user.has_usable_password())
