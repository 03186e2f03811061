"""/slow/?seconds=2: an answer that takes its time, for load tests. 404 unless ENABLE_SLOW is on."""

import math
import time

from django.conf import settings
from django.http import Http404, HttpResponseBadRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

MOST = 10  # seconds


@never_cache
@require_safe
def slow(request):
    if not settings.ENABLE_SLOW:
        raise Http404
    try:
        seconds = float(request.GET.get("seconds", "1"))
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MOST:
        return HttpResponseBadRequest(f"seconds must be a number from 0 to {MOST}.\n")
    time.sleep(seconds)
    return JsonResponse({"seconds": seconds, "release": settings.RELEASE})
