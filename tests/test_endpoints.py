"""What is decoded on the event loop is short, whatever a caller writes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from artifacts.inputs import ImageInput
from artifacts.predictor import Predictor
from serving.endpoints import PredictImage
from serving.exchange import Exchange
from serving.metrics import Metrics
from serving.pace import Pace
from serving.served import Prepared, ServedModel, serve_model
from serving.settings import Settings
from tests.listening import ON_LOOP_S

LONG = b" " * 70_000


def served(predictor: Predictor, folder: Path) -> ServedModel:
    return serve_model(Prepared(predictor, Pace([1], [ON_LOOP_S])), Settings(), Metrics(folder))


def asked(body: bytes, **headers: str) -> Exchange:
    named = {name.replace("_", "-").encode(): text.encode() for name, text in headers.items()}
    return Exchange("/", "", named, body)


def test_tensors_of_pixels_are_taken_on_the_loop_and_what_is_longer_to_read_is_not(
    digits: Predictor, cancer: Predictor, tmp_path: Path
) -> None:
    pictures, table = (
        served(predictor, tmp_path).endpoints[f"/v2/models/{predictor.manifest.name}/infer"]
        for predictor in (digits, cancer)
    )
    for header, of_pictures in (
        ("200", False),
        # JSON, called binary.
        (str(len(LONG)), True),
        ("065537", True),
        ("9" * 5000, True),
        ("-1", True),
    ):
        exchange = asked(LONG, inference_header_content_length=header)
        assert pictures.takes_long(exchange) == of_pictures, header
        # Cells are looked at one by one.
        assert table.takes_long(exchange)
    assert pictures.takes_long(asked(LONG)) and not table.takes_long(asked(LONG[:60_000]))


def test_a_key_with_an_escape_may_be_that_of_a_picture(digits: Predictor, tmp_path: Path) -> None:
    predict = served(digits, tmp_path).endpoints["/predict"]
    for body, takes_long in (
        (b'{"instances": [[0]]}', False),
        (b'{"instances": [{"b64": ""}]}', True),
        (b'{"instances": [{"b\\u00364": ""}]}', True),
        (b'{"instances": [{"\\u006264": ""}]}', True),
    ):
        assert predict.takes_long(asked(body)) == takes_long


@pytest.mark.parametrize(
    ("size", "resize", "takes_long"),
    [((8, 8), None, False), ((60, 60), None, False), ((4000, 1), None, False),
     ((90, 90), None, True), ((8, 8), 9, False), ((4000, 1), 9, True), ((1, 500), 9, True),
     ((20, 1), 9, False)],
)  # fmt: skip
def test_a_small_picture_that_becomes_a_large_one_is_decoded_in_a_thread(
    digits: Predictor, size: tuple[int, int], resize: int | None, takes_long: bool
) -> None:
    spec = ImageInput(channels=1, height=8, width=8, resize=resize)
    endpoint = PredictImage(
        digits.manifest.model_copy(update={"input": spec}),
        lambda probabilities, top_k: b"",
        max_rows=1,
        max_body_bytes=10**6,
        max_pixels=10**6,
    )
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, format="PNG")
    assert endpoint.takes_long(asked(buffer.getvalue())) == takes_long
