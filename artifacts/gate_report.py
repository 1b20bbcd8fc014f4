"""`parity.json`: what the parity gate found, format by format and batch size by batch size."""

from __future__ import annotations

import json

from pydantic import Field, ValidationError, model_validator

from artifacts.inputs import Frozen, first_problem


class Tally(Frozen):
    """One format at one batch size against eager. max_abs_diff: of logits."""

    rows: int = Field(ge=0)
    max_abs_diff: float
    label_disagreements: int


class DiffHistogram(Frozen):
    """Answers counted by their largest |difference of logits|, over all batch sizes.

    counts: by format: below edges[0], where nearly all are exactly 0, from edges[i-1] up to below
    edges[i], and from the last edge on.
    """

    edges: tuple[float, ...] = Field(min_length=1, max_length=200)
    counts: dict[str, tuple[int, ...]]

    @model_validator(mode="after")
    def _counts_fit_the_edges(self) -> DiffHistogram:
        for name, counts in self.counts.items():
            if len(counts) != len(self.edges) + 1 or min(counts) < 0:
                raise ValueError(f"{name}: expected {len(self.edges) + 1} counts >= 0")
        return self


class GateReport(Frozen):
    """Every format against the trained model.

    formats: tallies by format and batch size. histogram: None in bundles that were released before
    it was kept. one_answer: what was found of the same row at different batch sizes.
    """

    tolerance: str
    device: str
    held_out_rows: int
    edge_rows: int
    batch_sizes: tuple[int, ...] = Field(min_length=1)
    formats: dict[str, dict[str, Tally]]
    histogram: DiffHistogram | None = None
    one_answer: str

    def encode(self) -> bytes:
        """As the bytes of `parity.json`."""
        return (json.dumps(self.model_dump(mode="json"), indent=2) + "\n").encode()


def decode_gate_report(payload: bytes) -> GateReport:
    """`parity.json`. Raises ValueError that names what is wrong."""
    try:
        return GateReport.model_validate_json(payload)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error
