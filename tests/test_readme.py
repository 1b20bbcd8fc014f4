"""What the README tells people to type is typed here."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import httpx

from tests.conftest import ROOT, Server, free_port, wait_until_ready
from tests.documented import README, blocks, environment, run_page
from training.recipe import load_recipe


def test_the_commands_of_the_readme_work_one_after_the_other(tmp_path: Path) -> None:
    # `bentoml serve` takes the service from the bentofile of the working directory.
    for name in ("bentofile.yaml", "serving", "artifacts"):
        (tmp_path / name).symlink_to(ROOT / name)
    printed = run_page(README, tmp_path, tmp_path / "store")
    assert "promoted: mine" in printed and "golden rows agree" in printed
    assert "promoted: wine" in printed and "alcohol" in printed
    assert '"label":"0"' in printed and '"model":"mine@' in printed
    assert "(256, 10)" in printed
    assert "1797 rows in, 1797 scored, 0 rejected" in printed and "1797 answered" in printed


def test_only_the_two_commands_of_make_are_left_out() -> None:
    left_out = [block.text for block in blocks(README, "sh") if block.skipped]
    assert left_out == ["make serve\n", "make test\n"]


def test_the_recipes_of_the_readme_are_some(tmp_path: Path) -> None:
    recipes = []
    for number, block in enumerate(blocks(README, "toml")):
        file = tmp_path / f"recipe-{number}.toml"
        file.write_text(block.text)
        recipes.append(load_recipe(str(file)))
    own, tuned = recipes
    assert own.transfer.freeze_epochs == 4 and own.data.pixels is not None
    assert tuned.tune.objective == "log_loss" and len(tuned.tune.space) == 5


def test_make_serve_trains_serves_and_prints_a_curl_line_that_works(tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["make", "serve", f"PORT={port}"], cwd=ROOT, env=environment(tmp_path / "store"),
            stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        wait_until_ready(server, 180)
        said = log.read_text()
        assert "gate: model.onnx agrees with eager" in said
        command = next(line for line in said.splitlines() if line.startswith("curl "))
        assert f"localhost:{port}" in command
        done = subprocess.run(
            ["bash", "-c", command.replace("localhost", "127.0.0.1")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert '"predictions":[{"label":"' in done.stdout
        assert httpx.get(f"{server.url}/model").json()["name"] == "digits"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def test_make_knows_both_commands() -> None:
    for target in ("serve", "test"):
        done = subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
