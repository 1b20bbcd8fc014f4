"""What the front door says to torch's threads before torch is there."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.conftest import Ended


def test_threads_do_not_spin_unless_the_user_says_so(
    cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert cli("recipes").returncode == 0
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    cli("recipes", OMP_WAIT_POLICY="ACTIVE")
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
