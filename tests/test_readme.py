"""What the README tells people to type is typed here."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from tests.conftest import ROOT, Server, free_port, wait_until_ready
from training.recipe import load_recipe

BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PARITYLINE_STORE": str(folder / "store"),
        "BENTOML_DO_NOT_TRACK": "true",
    }


def test_the_commands_of_the_readme_work_one_after_the_other(tmp_path: Path) -> None:
    shell = [block for block in blocks("sh") if not block.startswith("make ")]
    assert [block.startswith("make ") for block in blocks("sh")] == [True, True] + [False] * len(
        shell
    )
    # `bentoml serve` takes the service from the bentofile of the working directory.
    for name in ("bentofile.yaml", "serving", "artifacts"):
        (tmp_path / name).symlink_to(ROOT / name)
    port = free_port()
    server: Server | None = None
    outputs = []
    try:
        for block in shell:
            block = block.replace("localhost:3000", f"127.0.0.1:{port}").replace("3000", str(port))
            if "bentoml serve" not in block:
                done = subprocess.run(
                    ["bash", "-euc", block], cwd=tmp_path, env=environment(tmp_path),
                    capture_output=True, text=True, timeout=200,
                )  # fmt: skip
                assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
                outputs.append(done.stdout)
                continue
            log = tmp_path / "server.log"
            with log.open("w") as output:
                process = subprocess.Popen(
                    ["bash", "-euc", f"exec env {block.strip()}"], cwd=tmp_path,
                    env=environment(tmp_path), stdout=output, stderr=subprocess.STDOUT, text=True,
                )  # fmt: skip
            server = Server(f"http://127.0.0.1:{port}", process, log)
            wait_until_ready(server)
        trained, table, asked, scored = outputs
        assert "promoted: wine" in table and "alcohol" in table and "cultivar" not in table
        assert "promoted: mine" in trained and "golden rows agree" in trained
        assert '"label":"0"' in asked and '"model":"mine@' in asked
        assert "1797 rows in, 1797 scored, 0 rejected" in scored
        for block, printed in zip(blocks("python"), ("(256, 10)", "1797 answered"), strict=True):
            block = block.replace("localhost:3000", f"127.0.0.1:{port}")
            done = subprocess.run(
                [sys.executable, "-c", block], cwd=tmp_path, env=environment(tmp_path),
                capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0 and printed in done.stdout, done.stderr
    finally:
        if server is not None:
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(timeout=60) == 0


def test_the_recipes_of_the_readme_are_some(tmp_path: Path) -> None:
    recipes = []
    for number, block in enumerate(blocks("toml")):
        file = tmp_path / f"recipe-{number}.toml"
        file.write_text(block)
        recipes.append(load_recipe(str(file)))
    own, tuned = recipes
    assert own.transfer.freeze_epochs == 4 and own.data.pixels is not None
    assert tuned.tune.objective == "log_loss" and len(tuned.tune.space) == 5


def test_make_serve_trains_serves_and_prints_a_curl_line_that_works(tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["make", "serve", f"PORT={port}"], cwd=ROOT, env=environment(tmp_path),
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
