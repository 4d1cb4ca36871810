"""What tests of whole runs share."""

import pytest

from t2l_jax.training import trackers


@pytest.fixture
def no_picture(monkeypatch) -> None:
    """Runs of a test draw no curves.png, which takes most of a second; those of module fixtures do."""
    monkeypatch.setattr(trackers, "draw_curves", lambda *_: None)
