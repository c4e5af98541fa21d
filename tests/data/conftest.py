"""Makes published_formats importable for the tests beside it, and finds the real data."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def real_data() -> str:
    """The folder of the published files; the test is skipped where there is none."""
    root = os.environ.get("DLRUN_DATA_DIR")
    if not root:
        pytest.skip("DLRUN_DATA_DIR is not set to a folder with the published files")
    return root
