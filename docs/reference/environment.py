"""Every environment variable: a service's from its settings, and those of the other commands."""

from __future__ import annotations

from dataclasses import MISSING, fields

from docs.reference.words import cell, code, field_words, table
from serving.settings import PREFIX, Settings


def page() -> str:
    """The variables, with what they take and their defaults."""
    about, words = field_words(Settings, [field.name for field in fields(Settings)])
    rows = []
    for field in fields(Settings):
        default = "" if field.default in (None, MISSING) else f"{field.default}"
        if isinstance(field.default, int) and field.default >= 1000:
            default = f"{field.default:,}"
        rows.append([code(PREFIX + field.name.upper()), code(default), cell(words[field.name])])
    return "\n".join(
        [
            "# Environment",
            "",
            "## A service",
            "",
            "Of `bentoml serve` and `parityline serve`; some are [options](commands.md#serve) of "
            "the latter, which go before. A value that cannot be used ends the start with the "
            "variable's name, what was expected and what was found.",
            "",
            about,
            "",
            *table(["variable", "default", ""], rows),
            "OpenTelemetry is off unless `OTEL_SDK_DISABLED=false`; then BentoML traces every "
            "request, at the cost of its middleware.",
            "",
            "## Every command",
            "",
            *table(
                ["variable", "default", ""],
                [
                    [
                        code(f"{PREFIX}STORE"),
                        code("artifacts/store"),
                        "Where the bundles are, and the checkpoints and studies of runs in "
                        "progress; below the working directory by default.",
                    ],
                    [
                        code(f"{PREFIX}TRACK"),
                        "",
                        "`0`: `train` and `tune` record nothing in MLflow. By default they do "
                        "where that is installed; `--track` and `--no-track` go before.",
                    ],
                    [
                        code("MLFLOW_TRACKING_URI"),
                        "",
                        "Where MLflow's server is; `MLFLOW_EXPERIMENT_NAME` and MLflow's other "
                        "variables hold too.",
                    ],
                    [
                        code(f"{PREFIX}RANK_TIMEOUT"),
                        code("600"),
                        "Seconds after which processes of one training under `torchrun` give up "
                        "waiting for one that hangs.",
                    ],
                ],
            ),
        ]
    )
