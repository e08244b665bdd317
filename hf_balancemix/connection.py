"""Whether the Hugging Face Hub can be reached; where it cannot, the libraries are told so and do not try."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import threading
from urllib.parse import urlsplit
from urllib.request import getproxies

from datasets import config as datasets_config
from huggingface_hub import constants
from transformers.utils import logging

logger = logging.get_logger(__name__)
# A Hub that can be used answers in a fraction of this; without a name server the look-up alone takes longer.
_SECONDS = 3.0


@functools.cache
def prepare_hub() -> bool:
    """Return whether files can come from the Hub; if not, switch this process and its children to offline mode.

    Call it before anything that may go to the Hub: huggingface_hub tries each request six times, more than a minute
    without a network. In offline mode, files in the cache load at once and everything else fails at once. The Hub is
    tried once per process, for at most three seconds, and not at all where offline mode is on (``HF_HUB_OFFLINE``) or
    a proxy is set, through which alone it may be reached.

    Raises:
        ValueError: If ``HF_ENDPOINT`` is no web address.
    """
    if constants.is_offline_mode():
        return False
    scheme, host, port = _address(constants.ENDPOINT)
    if {scheme, "all"} & getproxies().keys() or _accepts(host, port):
        return True
    constants.HF_HUB_OFFLINE = True  # read by huggingface_hub and, through it, by transformers and timm
    datasets_config.HF_HUB_OFFLINE = True  # a copy, made at import
    os.environ["HF_HUB_OFFLINE"] = "1"
    logger.warning(f"The Hub ({constants.ENDPOINT}) cannot be reached: only files in the cache can be used.")
    return False


def _address(endpoint: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a web address."""
    url = urlsplit(endpoint)
    default = {"http": 80, "https": 443}.get(url.scheme)
    try:
        port = url.port or default
    except ValueError:  # no number
        port = None
    if default is None or port is None or not url.hostname:
        raise ValueError(
            f"Expected a web address such as https://huggingface.co in HF_ENDPOINT, found {endpoint!r}. Correct or "
            "unset it."
        )
    return url.scheme, url.hostname, port


def _accepts(host: str, port: int) -> bool:
    """Say whether a host accepts a TCP connection in time."""
    accepted = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=_SECONDS):
            accepted.set()

    # A thread of its own, because looking up a name knows no timeout.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    return accepted.is_set()
