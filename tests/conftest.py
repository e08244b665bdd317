"""Fixtures shared by all tests."""

import json
from pathlib import Path

import pytest

from tests import browser

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text(encoding="utf-8"))


@pytest.fixture
def vectors():
    """Reference numbers worked out from the papers, by name (``"04_eq2_4_sampling"``)."""
    return VECTORS


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """A browser for all tests; without one they are skipped, but fail where ``CI`` is set."""
    started = browser.start(tmp_path_factory.mktemp("downloads"))
    yield started
    started.quit()
