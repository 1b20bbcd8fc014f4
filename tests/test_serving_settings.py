"""What the environment may say of a service, and how a mistake in it is named."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.errors import DataError
from serving.settings import Settings, as_environment, read_settings

WHOLE = [
    "workers", "max_body_bytes", "max_pixels", "max_rows", "max_queue_rows", "max_queue_bytes",
    "max_connections", "max_batch_size",
]  # fmt: skip
NUMBERS = [
    "max_delay_ms", "max_queue_ms", "read_timeout_s", "request_timeout_s", "keep_alive_s",
    "grace_s", "watch_s",
]  # fmt: skip
MAY_BE_0 = ["max_batch_size", "max_delay_ms", "max_queue_ms", "grace_s", "watch_s"]
WORDS = ["bundle", "backend", "device", "tokens"]


def test_every_setting_is_tested_here() -> None:
    assert sorted(WHOLE + NUMBERS + WORDS) == sorted(field.name for field in fields(Settings))


def test_nothing_said_leaves_the_defaults() -> None:
    assert read_settings({}) == Settings()
    empty = {f"PARITYLINE_{field.name.upper()}": "" for field in fields(Settings)}
    assert read_settings({**empty, "OTHER": "1"}) == Settings()


SAID = st.fixed_dictionaries(
    {},
    optional={
        **{name: st.integers(1, 10**9) for name in WHOLE},
        **{name: st.integers(1, 10**9).map(lambda n: n / 8) for name in NUMBERS},
        **{name: st.just(0) for name in MAY_BE_0},
        "bundle": st.just("digits@1"),
        "backend": st.sampled_from(["onnx", "torchscript", "export", "eager"]),
        "device": st.sampled_from(["auto", "cpu", "cuda"]),
        "tokens": st.just(Path("a file")),
    },
)


@given(said=SAID)
def test_what_is_chosen_is_read_back_from_the_environment(said: dict[str, Any]) -> None:
    assert read_settings(as_environment({**said, "unset": None})) == Settings(**said)


@pytest.mark.parametrize("name", WHOLE + NUMBERS)
@pytest.mark.parametrize(
    "text", ["much", "-1", "1e3", "0x10", " 1", "nan", "inf", "1_000", "٣", "1" * 16]
)
def test_what_is_no_number_is_refused_by_name(name: str, text: str) -> None:
    variable = f"PARITYLINE_{name.upper()}"
    kind = "a whole number" if name in WHOLE else "a number"
    with pytest.raises(DataError) as error:
        read_settings({variable: text})
    assert str(error.value).startswith(f"{variable}: expected {kind} ")
    assert str(error.value).endswith(f"found {text!r}")


@pytest.mark.parametrize("name", WHOLE + NUMBERS)
def test_0_is_a_number_only_where_it_means_something(name: str) -> None:
    environment = {f"PARITYLINE_{name.upper()}": "0"}
    if name in MAY_BE_0:
        assert getattr(read_settings(environment), name) == 0
    else:
        least = "of at least 1" if name in WHOLE else "above 0"
        with pytest.raises(DataError, match=f"{least}, found '0'"):
            read_settings(environment)


@pytest.mark.parametrize("name", WHOLE)
def test_a_fraction_is_no_whole_number(name: str) -> None:
    with pytest.raises(DataError, match="expected a whole number"):
        read_settings({f"PARITYLINE_{name.upper()}": "1.5"})


@pytest.mark.parametrize(("name", "one"), [("backend", "onnx"), ("device", "cuda")])
def test_a_choice_is_refused_with_what_there_is(name: str, one: str) -> None:
    with pytest.raises(DataError, match=f"PARITYLINE_{name.upper()}: expected one of .*{one}"):
        read_settings({f"PARITYLINE_{name.upper()}": "tensorrt"})
