"""How a slot is asked, where that can be tested without one."""

import socket
import time

import slots


def test_pages_that_hang_are_waited_for_together(tmp_path, monkeypatch):
    """A listener that takes every request and answers none stands for two workers that hang."""
    where = str(tmp_path / "slot.sock")
    workers = [{"pid": 1, "cores": [{}]}, {"pid": 2, "cores": [{}]}]
    monkeypatch.setattr(slots, "_stats", lambda site, slot: {"workers": workers})
    monkeypatch.setattr(slots, "_address", lambda site, slot: (where, "shop.test"))
    monkeypatch.setattr(slots, "_until_taken", lambda site, slot: None)
    monkeypatch.setattr(slots, "_PATIENCE", 0.5)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(where)
        listener.listen()
        began = time.monotonic()
        assert slots._warm("shop", "a", {"health": "/health/", "deploy": {"warm": []}}) == 0
    # Each alone is given 10 s when it is made: nowhere near what a slow machine makes of 0.5.
    assert time.monotonic() - began < 8
