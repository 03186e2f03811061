"""What every request passes: its id, and no session for strangers."""

import re
import uuid

from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.utils.cache import patch_cache_control

from newsroom.logs import current_request_id

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def request_id(get_response):
    """Log under the id that the balancer gave the request."""

    def middleware(request):
        given = request.headers.get("X-Request-ID", "")
        request.id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        # Not reset afterwards: Django logs errors when the middleware is through.
        current_request_id.set(request.id)
        response = get_response(request)
        response["X-Request-ID"] = request.id
        return response

    return middleware


def strangers_are_anonymous(get_response):
    """
    Who sends no session cookie is nobody: don't look for a session.

    Looking would add `Vary: Cookie`, and the accelerator couldn't keep the page. The other way
    round, what is made for somebody must not be kept for others.
    """

    def middleware(request):
        request.is_stranger = settings.SESSION_COOKIE_NAME not in request.COOKIES
        if request.is_stranger:
            request.user = AnonymousUser()
        response = get_response(request)
        if not request.is_stranger:
            patch_cache_control(response, private=True)
        return response

    return middleware
