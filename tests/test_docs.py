"""The documentation holds: it builds, links, parses, and what it has the reader type works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer

import parityline
from artifacts.bundle import read_bundle
from artifacts.references import resolve
from docs.reference import commands as reference_commands
from docs.reference import environment as reference_environment
from docs.reference import pages, recipes
from docs.reference.words import field_words
from serving.settings import Settings
from tests.conftest import ROOT
from tests.documented import PAGES, README, blocks, commands, not_shown, run_page
from training.recipe import load_recipe

WRITTEN = [README, *PAGES]
# Those that only look at a bundle, which the tests have already, run in seconds.
QUICK = [page for page in PAGES if page.parent.name == "explanation"]
TYPED = [page for page in PAGES if page not in QUICK and page.name != "index.md"]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", QUICK, ids=name)
def test_an_explanation_shows_what_is_so(page: Path, store: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path, store)


@pytest.mark.slow
@pytest.mark.parametrize("page", TYPED, ids=name)
def test_what_a_page_has_the_reader_type_works(page: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path)


# The command line, by its own parser.


def parse(words: list[str]) -> dict[str, Any]:
    group: Any = typer.main.get_command(parityline.app)
    assert words[1] in group.commands, f"no command {words[1]}"
    if "..." in words or "…" in words:
        return {}
    command = group.commands[words[1]]
    parameters: dict[str, Any] = command.make_context(words[1], words[2:]).params
    return parameters


def written_commands(page: Path) -> list[tuple[str, list[str]]]:
    """Each command of ours in a page's blocks and in its text, with its place."""
    written = [
        (block.place, block.text)
        for block in blocks(page)
        if block.language == "sh" or re.match(r"(parityline|torchrun) ", block.text)
    ]
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    written += [
        (f"{name(page)}: {inline}", inline)
        for inline in re.findall(r"`([^`]+)`", text)
        if re.match(r"parityline [a-z]+ |torchrun ", inline)
    ]
    ours = []
    for place, typed in written:
        for words in commands(typed):
            if words[0] == "torchrun":
                words = ["parityline", "train", *words[words.index("training") + 1 :]]
            if words[0] == "parityline":
                ours.append((place, words))
    return ours


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_every_command_has_only_options_that_there_are(page: Path) -> None:
    for place, words in written_commands(page):
        try:
            given = parse(words)
        except Exception as error:
            raise AssertionError(f"{place}: {' '.join(words)}: {error}") from error
        # What overrides a built-in recipe is a key of it.
        recipe, overrides = given.get("recipe"), given.get("set_")
        if overrides and recipe and not recipe.endswith(".toml") and recipe.islower():
            load_recipe(recipe, overrides)


def test_an_option_that_there_is_not_would_be_seen() -> None:
    parse(["parityline", "train", "digits", "--name", "mine"])
    for wrong in ("--nmae mine", "--name"):
        with pytest.raises(Exception, match="--"):
            parse(["parityline", "train", "digits", *wrong.split()])
    with pytest.raises(AssertionError, match="no command"):
        parse(["parityline", "sreve"])


def test_commands_are_found_in_shell_text() -> None:
    text = "A=1 one --x 'a; b' | two\nexec env B=2 three \\\n  --y && (four) & five $(cat x)\n"
    assert [words[:3] for words in commands(text)][:4] == [
        ["one", "--x", "a; b"], ["two"], ["three", "--y"], ["four"],
    ]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_recipe_and_every_json_is_one(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.language == "toml":
            file = tmp_path / f"{block.line}.toml"
            file.write_text(block.text)
            load_recipe(str(file))
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "python":
            compile(block.text, block.place, "exec")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_block_that_is_not_run_says_why_and_others_are_of_a_known_kind(page: Path) -> None:
    known = {"sh", "python", "toml", "text", "json", "nginx", "ini"}
    for block in blocks(page):
        assert block.language in known, block.place
        assert re.fullmatch(r"|fails|goes on|skip: .{10,}", block.note), block.place
        for test in re.findall(r"tests/\w+\.py", block.note):
            assert (ROOT / test).exists(), f"{block.place}: {test}"


def test_files_of_the_repository_that_pages_name_are_there() -> None:
    for page in PAGES:
        for file in re.findall(r"`((?:benchmarks|training|artifacts|serving|tests)/[\w/.]+\.\w+)`",
                               page.read_text()):  # fmt: skip
            assert (ROOT / file).exists(), f"{name(page)}: {file}"


# What is shown of output.


def test_shown_output_is_compared_by_its_shape() -> None:
    actual = "data: 96 train, 24 validation\nepoch 1  loss 1.07\nreleased: iris@1503fc97e341 (x)\n"
    assert (
        not_shown("data: 9 train, 2 validation\n...\nreleased: iris@b5992690a68b ...", actual)
        is None
    )
    assert (
        not_shown("data: 9 train, 2 validation\nreleased: wine@...", actual) == "released: wine@..."
    )
    assert not_shown("released: iris@...\ndata: ...", actual) == "data: ..."


# Numbers may be others where a page is run; this one is the same for every bundle.
def test_the_number_of_a_bundles_files_is_the_true_one(store: Path) -> None:
    files = len(read_bundle(resolve(store, "digits")).manifest.files)
    for page in WRITTEN:
        for shown in re.findall(r"(\d+) files are as released", page.read_text()):
            assert int(shown) == files, name(page)


@pytest.mark.parametrize(
    "text",
    [
        "```sh\nfalse\n```\n",
        "<!-- test: fails -->\n```sh\ntrue\n```\n",
        "```sh\necho one\n```\n\n```text\ntwo\n```\n",
        "```python\nx = 1\n```\n\n<!-- test: goes on -->\n```python\nassert x == 2\n```\n",
    ],
)
def test_a_page_whose_command_fails_or_prints_something_else_fails(
    tmp_path: Path, text: str
) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(AssertionError, match=re.escape(f"{page}:")):
        run_page(page, tmp_path)


def test_a_block_that_is_not_closed_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\ntrue\n")
    with pytest.raises(AssertionError, match="open"):
        blocks(page)


# The reference says all there is to say.


def test_every_key_of_a_recipe_and_every_setting_has_its_words() -> None:
    for heading, model in recipes.models().items():
        _, words = field_words(model, model.model_fields)
        for key, field in model.model_fields.items():
            is_section = recipes._model(field.annotation) is not None
            assert key == "kind" or is_section or key in words, f"{heading}: {key} has no words"
    _, words = field_words(Settings, [field.name for field in fields(Settings)])
    assert set(words) == {field.name for field in fields(Settings)}


def test_the_reference_has_every_variable_that_the_code_reads() -> None:
    shown = set(re.findall(r"`(PARITYLINE_[A-Z_]+)`", reference_environment.page()))
    read = {
        variable
        for room in ("training", "artifacts", "serving")
        for file in (ROOT / room).rglob("*.py")
        for variable in re.findall(r'"(PARITYLINE_[A-Z_]*[A-Z])"', file.read_text())
    }
    # By which our own processes find each other.
    assert read - shown == {"PARITYLINE_RUN_DIRECTORY"}


def test_the_reference_has_every_command_and_option() -> None:
    page = reference_commands.page()
    group: Any = typer.main.get_command(parityline.app)
    for command, found in group.commands.items():
        section = page.split(f"\n## {command}\n")[1].split("\n## ")[0]
        for parameter in found.params:
            for option in parameter.opts if parameter.param_type_name == "option" else []:
                assert f"`{option}`" in section, f"{command} {option}"
        assert "```sh\nparityline" in section, f"{command}: its help has no example"


def test_the_reference_has_the_range_of_an_option() -> None:
    page = reference_commands.page()
    assert "| `--port` | `PORT`, ≥\u00a01, ≤\u00a065535 | `3000` |" in page
    assert "| `--watch` | `SECONDS`, ≥\u00a00 |  |" in page


def test_the_examples_in_the_help_are_commands() -> None:
    group: Any = typer.main.get_command(parityline.app)
    for command, found in group.commands.items():
        examples = reference_commands.examples(found)
        assert examples, command
        for example in examples:
            for words in commands(example):
                if words[0] == "parityline":
                    parse(words)


# The site.


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet",
         "-f", "docs/mkdocs.yml", "-d", str(folder)],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Loaded(HTMLParser):
    """What a page makes a browser fetch by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        fetched = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
        if tag in fetched and given.get("rel") != "canonical":
            self.addresses.append(given.get(fetched[tag]) or "")


def test_the_site_is_whole_and_loads_nothing_from_elsewhere(site: Path) -> None:
    files = sorted(site.rglob("*.html"))
    assert len(files) == len(PAGES) + len(pages()) + 1  # and 404.html
    for file in files:
        text = file.read_text()
        assert "<!-- test:" not in text
        loaded = Loaded()
        loaded.feed(text)
        assert [a for a in loaded.addresses if re.match(r"(https?:)?//", a)] == [], file
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", sheet.read_text()), sheet


def test_make_docs_builds_it() -> None:
    done = subprocess.run(["make", "--dry-run", "docs"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "mkdocs build" in done.stdout
    ignored = subprocess.run(["git", "check-ignore", "-q", "site/index.html"], cwd=ROOT)
    assert ignored.returncode == 0 or not (ROOT / ".git").exists() or shutil.which("git") is None


def test_the_readme_names_the_documentation() -> None:
    assert "docs/pages/tutorial.md" in README.read_text()


def test_the_place_of_a_block_is_where_it_begins() -> None:
    lines = README.read_text().splitlines()
    found = blocks(README)
    assert len(found) > 10
    for block in found:
        file, _, line = block.place.partition(":")
        assert file == "README.md" and lines[int(line) - 1].startswith(f"```{block.language}")
