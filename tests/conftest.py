"""What all tests share: where external test data is, and how hypothesis runs.

Hypothesis draws the same examples in every run, so that a failure is one for everybody;
`DSTORE_HYPOTHESIS=explore` draws new ones, and many more.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_REPOSITORY = Path(__file__).resolve().parent.parent

settings.register_profile(
    "default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "explore", deadline=None, max_examples=5000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("DSTORE_HYPOTHESIS", "default"))


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """The folder of external test data (`$DSTORE_FIXTURES`, else `../shared/fixtures` beside
    the repository).  Tests that ask for it are skipped where it does not exist."""
    named = os.environ.get("DSTORE_FIXTURES", "../shared/fixtures")
    folder = (_REPOSITORY / named).resolve()
    if not folder.is_dir():
        pytest.skip(f"external test data not found: {folder} (set DSTORE_FIXTURES)")
    return folder
