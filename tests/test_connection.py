"""Whether the Hub answers, and what happens if it does not."""

import logging
import os
import socket
import threading
import time

import datasets
import pytest
import timm
import transformers
from huggingface_hub import constants, get_session
from huggingface_hub.errors import OfflineModeIsEnabled

from hf_balancemix import connection
from hf_balancemix.connection import prepare_hub


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Forget what was found before, set nothing that stays, and hide the proxies of the machine."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    prepare_hub.cache_clear()
    yield
    prepare_hub.cache_clear()


@pytest.fixture
def port():
    """A port of this machine that nothing listens on, and its socket."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound, bound.getsockname()[1]


def offline():
    """What each library reads."""
    return constants.is_offline_mode(), datasets.config.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_closed_port_switches_to_offline_mode(monkeypatch, port, caplog):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port[1]}")
    assert offline() == (False, False, False)
    with caplog.at_level(logging.WARNING):
        assert not prepare_hub()
        assert not prepare_hub()
    assert [record.getMessage() for record in caplog.records] == [
        f"The Hub (http://127.0.0.1:{port[1]}) cannot be reached: only files in the cache can be used."
    ]
    assert offline() == (True, True, True)
    start = time.perf_counter()
    with pytest.raises(OfflineModeIsEnabled):
        get_session().get(f"http://127.0.0.1:{port[1]}")
    with pytest.raises(OSError, match="cached files"):
        transformers.AutoConfig.from_pretrained("nobody/nothing")
    with pytest.raises(OSError, match="local cache"):
        timm.create_model("hf-hub:nobody/nothing", pretrained=True)
    with pytest.raises(ConnectionError):
        datasets.load_dataset("nobody/nothing")
    assert time.perf_counter() - start < 2  # no second try


def test_an_open_port_leaves_everything_as_it_is(monkeypatch, port, caplog):
    bound, number = port
    bound.listen()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{number}/some/path")
    assert prepare_hub()
    bound.close()
    assert prepare_hub()  # asked once
    assert offline() == (False, False, False)
    assert not caplog.records


def test_nothing_is_asked_in_offline_mode_or_behind_a_proxy(monkeypatch, port, caplog):
    monkeypatch.setattr(connection, "_accepts", lambda host, port: pytest.fail("asked"))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not prepare_hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTP_PROXY", "all_proxy"):
        prepare_hub.cache_clear()
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        assert prepare_hub()
        monkeypatch.delenv(name)
    assert not caplog.records
    prepare_hub.cache_clear()
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # not for this endpoint
    with pytest.raises(pytest.fail.Exception, match="asked"):
        prepare_hub()


def test_a_name_server_that_does_not_answer_costs_no_more_than_the_limit(monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: released.wait(60) and [])
    monkeypatch.setattr(connection, "_SECONDS", 0.2)
    start = time.perf_counter()
    assert not prepare_hub()
    assert 0.2 <= time.perf_counter() - start < 2
    released.set()


def test_the_limit_is_three_seconds():
    assert connection._SECONDS <= 3


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("https://huggingface.co", ("https", "huggingface.co", 443)),
        ("http://mirror", ("http", "mirror", 80)),
        ("https://[::1]:8443/hub", ("https", "::1", 8443)),
    ],
)
def test_addresses(endpoint, address):
    assert connection._address(endpoint) == address


@pytest.mark.parametrize("endpoint", ["huggingface.co", "localhost:8080", "https://", "http://a:b", ""])
def test_an_endpoint_that_is_no_address(monkeypatch, endpoint):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(ValueError, match=r"web address such as .* in HF_ENDPOINT, found '.*'\. Correct or unset it"):
        prepare_hub()
