"""
Cache backends for production: a dead cache is a miss, not an error.

Django's own backends raise when their server is away. pymemcache can swallow that itself, but
then says nothing; here it is logged, once a minute. No maintained library does this for both
memcached and Redis, and it is little code.
"""

import logging
import random
import time

from django.core.cache.backends.base import DEFAULT_TIMEOUT
from django.core.cache.backends.memcached import PyMemcacheCache
from django.core.cache.backends.redis import RedisCache

LOG_EVERY = 60  # seconds
logger = logging.getLogger(__name__)


class Forgiving:
    """
    Mix-in for a Django cache backend, which says in `errors` what it may raise.

    `clear` still raises: who clears wants to know.
    """

    _logged = -LOG_EVERY  # of the whole process

    def _try(self, operation, otherwise, *args, **kwargs):
        try:
            return getattr(super(), operation)(*args, **kwargs)
        except self.errors() as error:
            self._log(error)
            return otherwise

    @staticmethod
    def _log(error):
        if time.monotonic() - Forgiving._logged >= LOG_EVERY:
            Forgiving._logged = time.monotonic()
            logger.warning("The cache fails, working without it: %s", error or repr(error))

    def get(self, key, default=None, version=None):
        return self._try("get", default, key, default, version)

    def get_many(self, keys, version=None):
        return self._try("get_many", {}, keys, version)

    def has_key(self, key, version=None):
        return self._try("has_key", False, key, version)

    def add(self, key, value, timeout=DEFAULT_TIMEOUT, version=None):
        return self._try("add", False, key, value, timeout, version)

    def set(self, key, value, timeout=DEFAULT_TIMEOUT, version=None):
        return self._try("set", None, key, value, timeout, version)

    def set_many(self, data, timeout=DEFAULT_TIMEOUT, version=None):
        return self._try("set_many", list(data), data, timeout, version)

    def touch(self, key, timeout=DEFAULT_TIMEOUT, version=None):
        return self._try("touch", False, key, timeout, version)

    def delete(self, key, version=None):
        return self._try("delete", False, key, version)

    def delete_many(self, keys, version=None):
        return self._try("delete_many", None, keys, version)

    def incr(self, key, delta=1, version=None):
        try:
            return super().incr(key, delta, version)
        except self.errors() as error:
            self._log(error)
            raise ValueError(f"Key {key!r} not found") from error

    def get_backend_timeout(self, timeout=DEFAULT_TIMEOUT):
        """Up to a tenth shorter than asked for: what is stored together expires apart."""
        if timeout is DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        if timeout and timeout > 0:
            timeout *= random.uniform(0.9, 1)  # noqa: S311 - no secret
        return super().get_backend_timeout(timeout)


class Memcached(Forgiving, PyMemcacheCache):
    """Memcached, or twemproxy before several of them."""

    def errors(self):
        # Imported here, as Django does: who uses one library is spared the other.
        from pymemcache.exceptions import MemcacheError

        return OSError, MemcacheError


class Redis(Forgiving, RedisCache):
    """Redis."""

    def errors(self):
        from redis.exceptions import RedisError

        return OSError, RedisError
