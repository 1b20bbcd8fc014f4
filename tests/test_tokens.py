"""The file of bearer tokens: what it must hold, and when it is read again."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from artifacts.errors import DataError
from serving.tokens import Tokens

FIRST, SECOND = "first-token-of-16-or-more", "second-token-of-16-or-more"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"# of team one\n{FIRST}\n\n  {SECOND}  \n")
    return path


def test_each_token_of_the_file_is_accepted_and_nothing_else(file: Path) -> None:
    tokens = Tokens(file)
    for good in (f"Bearer {FIRST}", f"bearer {SECOND}", f"BEARER   {FIRST} "):
        assert tokens.accept(good.encode())
    for bad in (
        "", "Bearer", "Bearer ", FIRST, f"Basic {FIRST}", f"Bearer {FIRST}x",
        f"Bearer {FIRST[:-1]}", f"Bearer {FIRST} {SECOND}", "Bearer # of team one",
        "Bearer \xff", f"Bearer\t{FIRST}",
    ):  # fmt: skip
        assert not tokens.accept(bad.encode("latin-1"))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "found none"),
        (b"# nothing\n\n", "found none"),
        (b"a-token-of-16-or-more\nshort\n", "token 2 is shorter"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_without_good_tokens_is_refused(file: Path, content: bytes, found: str) -> None:
    file.write_bytes(content)
    with pytest.raises(DataError, match=found) as error:
        Tokens(file)
    assert str(error.value).startswith(f"{file}: expected")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError, match="expected a file of tokens, cannot be read"):
            Tokens(path)


def test_a_mark_at_the_start_of_the_file_is_no_part_of_a_token(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + FIRST.encode())
    assert Tokens(file).accept(f"Bearer {FIRST}".encode())


def test_a_changed_file_is_read_again_and_a_spoiled_one_leaves_the_tokens_as_they_are(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = Tokens(file)
    first, second = f"Bearer {FIRST}".encode(), f"Bearer {SECOND}".encode()
    file.write_text(f"{SECOND}\n")
    tokens.refresh()
    assert tokens.accept(second) and not tokens.accept(first)
    with caplog.at_level(logging.ERROR, logger="bentoml.parityline"):
        for spoil in (lambda: file.write_text("short\n"), file.unlink):
            spoil()
            tokens.refresh()
            assert tokens.accept(second) and not tokens.accept(first)
    assert caplog.text.count("still those of before") == 2
    file.write_text(f"{FIRST}\n")
    tokens.refresh()
    assert tokens.accept(first) and not tokens.accept(second)
