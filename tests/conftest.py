"""What holds for all tests: pytest-salt-factories listens on the loopback interface only."""

import pytest
import salt._logging.impl
from saltfactories.plugins.event_listener import EventListener

salt._logging.impl.shutdown_temp_handler()  # it would write to a closed file at exit


def _listen_on_loopback(self, *args, _init=EventListener.__init__, **kwargs):
    _init(self, *args, **kwargs)
    self.host, self.address = "127.0.0.1", f"tcp://127.0.0.1:{self.port}"


EventListener.__init__ = _listen_on_loopback


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session):
    plugin = session.config.pluginmanager.get_plugin("saltfactories-log-server")
    plugin.log_host = "127.0.0.1"
