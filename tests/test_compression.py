"""Compressed bodies: what they stand for, and no more of it than allowed."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from artifacts.errors import DataError
from serving.compression import compress, inflate


def raw_deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush()


WAYS = [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress),
        ("deflate", raw_deflate)]  # fmt: skip


@pytest.mark.parametrize(("encoding", "encode"), WAYS)
@given(
    data=st.binary(max_size=300) | st.builds(bytes, st.integers(0, 3000)), room=st.integers(0, 9)
)
def test_a_body_comes_back_up_to_the_very_limit(encoding, encode, data: bytes, room: int) -> None:
    limit = max(len(data) + room, 1)
    assert inflate(encode(data), encoding, limit) == data
    if len(data) > 1:
        with pytest.raises(HTTPException) as refused:
            inflate(encode(data), encoding, len(data) - 1)
        assert refused.value.status_code == 413


@pytest.mark.parametrize(("encoding", "encode"), WAYS)
def test_a_bomb_is_refused_before_it_is_large(encoding, encode) -> None:
    bomb = encode(bytes(50 * 2**20))
    assert len(bomb) < 100_000
    tracemalloc.start()
    with pytest.raises(HTTPException) as refused:
        inflate(bomb, encoding, 100_000)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused.value.status_code == 413 and "100000" in refused.value.detail
    assert most < 2_000_000


@pytest.mark.parametrize(("encoding", "encode"), WAYS)
def test_damage_is_the_callers_mistake(encoding, encode) -> None:
    whole = encode(b"some bytes" * 50)
    for damaged in (b"", whole[:-6], whole + b"more", b"hello", whole[:5] + b"\xff" * 20):
        with pytest.raises(DataError, match="the body"):
            inflate(damaged, encoding, 10_000)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "compress"])
def test_another_encoding_is_refused_by_name(encoding: str) -> None:
    with pytest.raises(HTTPException) as refused:
        inflate(b"", encoding, 10)
    assert refused.value.status_code == 415 and repr(encoding) in refused.value.detail


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        (b"gzip", b"gzip"),
        (b"deflate, GZIP;q=0.5", b"gzip"),
        (b"deflate", b"deflate"),
        (b"br", None),
        (b"gzip;q=0", None),
        (b"gzip; q=0.000, deflate", b"deflate"),
        (b"", None),
    ],
)
def test_an_answer_is_encoded_as_its_caller_takes_it(
    accepted: bytes, encoding: bytes | None
) -> None:
    body = b"answer" * 1000
    content, chosen = compress(body, accepted)
    assert chosen == encoding
    assert (inflate(content, chosen.decode(), 10_000) if chosen else content) == body
    assert compress(b"short", accepted) == (b"short", None)
