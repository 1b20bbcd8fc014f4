"""Pages of documentation, run as a reader types them: their blocks in order, in one folder.

A block is shell (`sh`, also `bentoml serve`, which then stays up until the page's end), Python,
a file (a block with a title is written by that name), or `text`: what the command before it
prints, where `...` stands for anything and numbers may be others. A note before a block, in a
comment that no reader sees, says what is not so:

    <!-- test: fails -->            the command ends with another status than 0
    <!-- test: goes on -->          Python in the same process as the block before
    <!-- test: skip: REASON -->     it is not run here
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.conftest import ROOT, Server, free_port, wait_until_ready

BIN = Path(sys.executable).parent
PAGES = sorted((ROOT / "docs" / "pages").rglob("*.md"))
README = ROOT / "README.md"

_BLOCK = re.compile(
    r"(?:^<!-- test: (?P<note>.*?) -->\n)?"
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(r"[0-9a-f]{12,}|\d(?:[\d.,:+T-]*\d)?(?:e-?\d+)?")
_COMMENT = re.compile(r"(?m)(?:^|[ \t]+)# .*$")
_CONTINUED = re.compile(r"\\\n\s*")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. language: "" where it names none; such a block is not run.

    note: what its comment says, or "".
    """

    page: Path
    line: int
    language: str
    title: str | None
    note: str
    text: str

    @property
    def place(self) -> str:
        """For messages."""
        shown = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page
        return f"{shown}:{self.line}"

    @property
    def skipped(self) -> bool:
        """Whether it is not run: it says why, or it sets up a checkout."""
        return self.note.startswith("skip: ") or self.text.startswith("make ")

    @property
    def serves(self) -> bool:
        """Whether it stays up."""
        return (
            self.language == "sh"
            and re.search(r"(bentoml|parityline) serve", self.text) is not None
        )


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """The blocks of a page, of one language or all."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(
            page,
            text.count("\n", 0, match.start("language")) + 1,
            match["language"],
            match["title"],
            match["note"] or "",
            match["text"],
        )
        for match in _BLOCK.finditer(text)
    ]
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(found), (
        f"{page}: a block is open"
    )
    return [block for block in found if language in (None, block.language)]


def environment(store: Path | None = None) -> dict[str, str]:
    """A reader's, with this checkout's commands; the store is where it is by default, or there."""
    return {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
        "BENTOML_DO_NOT_TRACK": "true",
        "PARITYLINE_DEVICE": os.environ.get("PARITYLINE_DEVICE", "cpu"),
        "PARITYLINE_GRACE_S": "0.1",
        **({} if store is None else {"PARITYLINE_STORE": str(store)}),
    }


def run_page(page: Path, folder: Path, store: Path | None = None, timeout_s: float = 600) -> str:
    """Everything that a page has the reader type, in a folder; what it all printed."""
    port = free_port()
    printed, last = [], ""
    server: Server | None = None
    try:
        for block in _joined(blocks(page)):
            if block.skipped:
                last = "..."
                continue
            if block.title is not None:
                target = folder / block.title
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(block.text)
            elif block.language == "text":
                if last != "...":
                    assert not (missing := not_shown(block.text, last)), (
                        f"{block.place}: {missing!r} is not in\n{last}"
                    )
            elif block.serves:
                assert server is None, f"{block.place}: one service a page"
                server = _serve(block, folder, store, port)
                last = server.log.read_text()
            elif block.language in ("sh", "python"):
                last = _run(block, folder, store, port, timeout_s)
                printed.append(last)
    finally:
        if server is not None:
            _stop(server)
    return "\n".join(printed)


def _joined(found: list[Block]) -> list[Block]:
    """Python that goes on is part of the block before it."""
    joined: list[Block] = []
    for block in found:
        if block.note == "goes on":
            joined[-1] = replace(joined[-1], text=joined[-1].text + "\n" + block.text)
        else:
            joined.append(block)
    return joined


def _run(block: Block, folder: Path, store: Path | None, port: int, timeout_s: float) -> str:
    text = _with_port(block.text, port)
    command = ["bash", "-euc", text] if block.language == "sh" else [sys.executable, "-c", text]
    done = subprocess.run(
        command, cwd=folder, env=environment(store), capture_output=True, text=True,
        timeout=timeout_s,
    )  # fmt: skip
    printed = done.stdout + done.stderr
    assert (done.returncode != 0) == (block.note == "fails"), f"{block.place}\n{text}\n{printed}"
    return printed


def _serve(block: Block, folder: Path, store: Path | None, port: int) -> Server:
    text = _with_port(block.text, port).strip()
    if str(port) not in text:
        text += f" --port {port}"
    log = folder / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-euc", f"exec env {text}"], cwd=folder, env=environment(store),
            stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
    # What a page does with a running service, by its process.
    (folder / "serve.pid").write_text(str(process.pid))
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        wait_until_ready(server)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return server


def _stop(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)
    try:
        assert server.process.wait(timeout=60) == 0, server.log.read_text()
    finally:
        if server.process.poll() is None:
            os.killpg(server.process.pid, signal.SIGKILL)


def _with_port(text: str, port: int) -> str:
    return text.replace("localhost:3000", f"127.0.0.1:{port}").replace("3000", str(port))


def not_shown(expected: str, actual: str) -> str | None:
    """The first expected line that is not, in order, among the actual ones; None where all are."""
    lines = iter(_shape(line) for line in actual.splitlines())
    for line in expected.splitlines():
        shape = _shape(line)
        if shape in ("", "..."):
            continue
        pattern = ".*".join(map(re.escape, shape.split("...")))
        if not any(re.fullmatch(pattern, found) for found in lines):
            return line
    return None


def _shape(line: str) -> str:
    """Without what differs from run to run: numbers, digests, widths of columns."""
    return " ".join(_NUMBER.sub("#", line).split())


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of shell text, as words, without variables and redirections."""
    text = _COMMENT.sub("", _CONTINUED.sub(" ", text))
    lexer = shlex.shlex(text, posix=True, punctuation_chars="();&|\n")
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("();&|\n"):
            if words:
                yield words
            words = []
        elif words or not re.match(r"[A-Z_]+=|sudo$|exec$|env$", word):
            words.append(word)
