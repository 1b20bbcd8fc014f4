"""The whole line on real data: accuracy, seconds, and equality of service and scoring job.

    python benchmarks/spine.py --fashion-mnist FOLDER

Trains the built-in recipes through the command line as a user would, over several seeds; then
serves the Fashion-MNIST bundle with `bentoml serve`, sends it the 10,000 test images as PNG and as
nested pixels, scores the same images offline, and compares labels and probabilities bit for bit.
Replaces its section of RESULTS.md.
"""

from __future__ import annotations

import argparse
import base64
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq

from artifacts.bundle import Bundle
from artifacts.pixels import encode_png
from artifacts.references import open_reference
from benchmarks.results import machine, write
from training.idx import read_idx_set

TITLE = "## The whole line (spine.py)"
ROOT = Path(__file__).parent.parent
REQUEST_ROWS = 500


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fashion-mnist", required=True, help="folder of the idx files")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    folder = str(Path(arguments.fashion_mnist).resolve())
    lines = [f"{machine()} A seed decides split, weights and order.", ""]
    lines += [
        "| recipe | seeds | test accuracy: seed 0 | mean ± sd (min to max) | train - test, mean "
        "| seconds of `parityline train`, median (min to max) |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["PARITYLINE_STORE"] = temporary
        lines.append(row("digits", arguments.seeds))
        lines.append(row("breast-cancer", 2 * arguments.seeds))
        lines.append(row("fashion-mnist", 3, "--data", folder))
        lines += ["", *serve_and_score(Path(folder), Path(temporary)), ""]
    write(TITLE, lines)


def row(recipe: str, seeds: int, *options: str) -> str:
    """One line of the table: the recipe trained with `seeds` seeds."""
    accuracy, gaps, seconds = [], [], []
    for seed in range(seeds):
        bundle, took = train(recipe, seed, *options)
        metrics = bundle.manifest.metrics
        accuracy.append(metrics["test"].accuracy.value)
        gaps.append(metrics["train"].accuracy.value - accuracy[-1])
        seconds.append(took)
        print(f"{recipe} seed {seed}: test accuracy {accuracy[-1]:.4f}, {took:.1f} s", flush=True)
    mean, spread = statistics.mean(accuracy), statistics.stdev(accuracy)
    return (
        f"| {recipe} | {seeds} | {accuracy[0]:.4f} | {mean:.4f} ± {spread:.4f} "
        f"({min(accuracy):.4f} to {max(accuracy):.4f}) | {statistics.mean(gaps):.4f} | "
        f"{statistics.median(seconds):.0f} ({min(seconds):.0f} to {max(seconds):.0f}) |"
    )


def train(recipe: str, seed: int, *options: str) -> tuple[Bundle, float]:
    name = f"{recipe}-{seed}"
    command = [sys.executable, "-m", "parityline", "train", recipe, "--name", name]
    command += [*options, "--set", f"train.seed={seed}", "--set", f"data.seed={seed}"]
    began = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    took = time.perf_counter() - began
    return open_reference(Path(os.environ["PARITYLINE_STORE"]), name), took


def serve_and_score(folder: Path, temporary: Path) -> list[str]:
    """The 10,000 test images through `bentoml serve` and through `parityline score`."""
    _, _, images, labels = read_idx_set("fashion-mnist", folder)
    np.savez(temporary / "images.npz", images=images)
    out = temporary / "scores"
    command = [sys.executable, "-m", "parityline", "score", "fashion-mnist-0"]
    command += [str(temporary / "images.npz"), "--out", str(out)]
    subprocess.run(command, check=True, cwd=ROOT)
    table = pq.read_table(out / "part-00000.parquet")
    names = [name for name in table.column_names if name.startswith("probability_")]
    offline = np.stack([table[name].to_numpy() for name in names], axis=1)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "PARITYLINE_BUNDLE": "fashion-mnist-0"}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            wait(url)
            answers = {
                "nested pixels": ask(url, [image.tolist() for image in images]),
                "PNG as base64": ask(
                    url,
                    [
                        {"b64": base64.b64encode(encode_png(image[np.newaxis])).decode()}
                        for image in images
                    ],
                ),
            }
        finally:
            server.terminate()
    lines = [
        f"The {len(images):,} Fashion-MNIST test images (seed 0), `bentoml serve` in requests of "
        f"{REQUEST_ROWS} against `parityline score` (accuracy {accuracy(offline, labels):.4f}):",
        "",
        "| sent as | labels that differ | probabilities whose bits differ |",
        "|---|---|---|",
    ]
    for name, (answered_labels, answered) in answers.items():
        other_labels = sum(
            a != b for a, b in zip(answered_labels, table["label"].to_pylist(), strict=True)
        )
        other_bits = int((answered != offline.astype(np.float64)).sum())
        lines.append(f"| {name} | {other_labels} | {other_bits} of {answered.size:,} |")
    return lines


def ask(url: str, instances: list) -> tuple[list[str], np.ndarray]:
    labels, probabilities = [], []
    with httpx.Client(base_url=url, timeout=60) as client:
        for start in range(0, len(instances), REQUEST_ROWS):
            body = {"instances": instances[start : start + REQUEST_ROWS]}
            response = client.post("/predict", json=body)
            response.raise_for_status()
            for prediction in response.json()["predictions"]:
                labels.append(prediction["label"])
                probabilities.append(list(prediction["probabilities"].values()))
    return labels, np.array(probabilities, dtype=np.float64)


def wait(url: str) -> None:
    for _ in range(600):
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError(url)


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float((probabilities.argmax(axis=1) == labels).mean())


if __name__ == "__main__":
    main()
