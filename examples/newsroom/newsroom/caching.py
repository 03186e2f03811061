"""How long pages and costly values are kept."""

import time
from functools import wraps

from django.conf import settings
from django.core.cache import cache
from django.utils.cache import patch_cache_control

# For how long, in seconds, a value is still handed out while it is made anew.
STALE = 60


def public_page(view):
    """
    Decorator for a page that looks the same to every stranger.

    The accelerator may keep it for PUBLIC_SECONDS; browsers ask each time, so that somebody who
    logs in doesn't see the stranger's page again.
    """

    @wraps(view)
    def wrapped(request, *args, **kwargs):
        response = view(request, *args, **kwargs)
        if request.is_stranger:
            patch_cache_control(response, public=True, max_age=0, s_maxage=settings.PUBLIC_SECONDS)
        return response

    return wrapped


def made_by_one(key, make, seconds):
    """
    A value from the cache; when it expires one caller makes it anew, the others get the old one.

    key
        Its key. Read it through this function only: it is stored with the time it is fresh until.
    make
        Function without arguments that returns the value.
    seconds
        How long it is fresh. Within STALE seconds after that it is handed out while one makes it;
        later, or in an empty cache, everybody makes it.

    There are libraries: dogpile.cache brings backends of its own beside Django's, django-cacheback
    makes values in a background task. These few lines need neither.
    """
    entry = cache.get(key)
    making = f"{key}:making"
    if entry and (entry[1] > time.time() or not cache.add(making, True, STALE)):
        return entry[0]
    value = make()
    cache.set(key, (value, time.time() + seconds), seconds + STALE)
    cache.delete(making)
    return value
