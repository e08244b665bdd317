"""Fixtures shared by all tests."""

import json
from pathlib import Path

import pytest

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text(encoding="utf-8"))


@pytest.fixture
def vectors():
    """Reference numbers worked out from the papers, by name (``"04_eq2_4_sampling"``)."""
    return VECTORS
