"""The stand-in Hub, where this process and those that it starts look for the real one."""

import pytest

from hf_balancemix.hub import contents, push
from hf_balancemix.training import pushing
from tests.hub.server import StandInHub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The server. This process only pushes, and that it leaves to another one, which reads these variables."""
    with StandInHub() as server:
        for name, value in server.environment(tmp_path / "hf_home").items():
            monkeypatch.setenv(name, value)
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setattr(push, "_OFFLINE", None)
        yield server


@pytest.fixture
def impatient(monkeypatch):
    """Give pushes up after a few seconds."""
    monkeypatch.setattr(contents, "_SECONDS", 4.0)
    monkeypatch.setattr(pushing, "_TO_CREATE", 4.0)
