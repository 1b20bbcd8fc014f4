"""What became of a job: its records joined, one at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from artifacts.drift import DriftCounts
from artifacts.manifest import Manifest
from serving.scoring.answers import Format
from serving.scoring.decay import compare
from serving.scoring.folder import OutFolder
from serving.scoring.scorer import unpacked
from serving.scoring.sources import Source
from serving.scoring.target import TargetTally

_REJECTED = pa.schema([("file", pa.string()), ("row", pa.int64()), ("reason", pa.string())])
_MOST_REASONS = 10
_DIFFERENT_REASONS = 1000


def join_records(
    folder: OutFolder, manifest: Manifest, sources: Sequence[Source], form: Format
) -> dict[str, Any]:
    """Write the rejected rows, and return what the records say together.

    rows_in = rows_scored + rows_rejected; reasons: the most frequent; drift: of each column;
    target: metrics of the rows whose label is known; parts: with their digests.
    """
    found = _Joined(manifest)
    name = f"rejected.{form}"
    with folder.writer(name) as path, _Rejects(path, form) as rejects:
        for record in folder.records():
            found.add(record)
            rejects.write(sources[record["source"]].name, record["rejected"])
    return found.summary()


class _Joined:
    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._scored = self._rejected = 0
        self._counts = np.zeros(len(manifest.labels), dtype=np.int64)
        self._reasons: dict[str, int] = {}
        self._parts: list[dict[str, Any]] = []
        self._drift: DriftCounts | None = None
        self._target: TargetTally | None = None

    def add(self, record: dict[str, Any]) -> None:
        self._scored += record["rows_scored"]
        self._rejected += len(record["rejected"])
        self._counts += record["label_counts"]
        for _, reason in record["rejected"]:
            if reason in self._reasons or len(self._reasons) < _DIFFERENT_REASONS:
                self._reasons[reason] = self._reasons.get(reason, 0) + 1
        if record["part"] is not None:
            self._parts.append({key: record[key] for key in ("part", "rows_scored", "sha256")})
        if record["drift"] is not None:
            manifest = self._manifest
            drift = DriftCounts.from_json(manifest.profile, manifest.input, record["drift"])
            if self._drift is None:
                self._drift = drift
            else:
                self._drift.merge(drift)
        if record["target"] is not None:
            target = TargetTally.from_arrays(unpacked(record["target"]))
            if self._target is None:
                self._target = target
            else:
                self._target.merge(target)

    def summary(self) -> dict[str, Any]:
        often = sorted(self._reasons.items(), key=lambda item: (-item[1], item[0]))
        counts = self._counts.tolist()
        return {
            "rows_in": self._scored + self._rejected,
            "rows_scored": self._scored,
            "rows_rejected": self._rejected,
            "reasons": dict(often[:_MOST_REASONS]),
            "label_counts": dict(zip(self._manifest.labels, counts, strict=True)),
            "drift": {} if self._drift is None else self._drift.figures(),
            "target": None if self._target is None else self._beside_release(self._target),
            "parts": self._parts,
        }

    def _beside_release(self, tally: TargetTally) -> dict[str, Any]:
        metrics, calibration = tally.metrics(), tally.calibration()
        then = self._manifest.metrics.get("test")
        return {
            "rows": tally.rows,
            "unlabelled": tally.unlabelled,
            "unknown": tally.unknown,
            "unknown_labels": tally.unknown_names(),
            "undefined": tally.undefined,
            "metrics": metrics and metrics.model_dump(mode="json"),
            "calibration": calibration and calibration.model_dump(mode="json"),
            "beside_release": compare(metrics, then) if metrics and then else None,
        }


class _Rejects:
    """rejected.parquet, .csv or .jsonl, written as it comes."""

    def __init__(self, path: Path, form: Format) -> None:
        self._form = form
        self._table = pq.ParquetWriter(path, _REJECTED) if form == "parquet" else None
        self._text = None if self._table else path.open("w", encoding="utf-8", newline="")
        if self._text is not None and form == "csv":
            csv.writer(self._text).writerow(_REJECTED.names)

    def __enter__(self) -> _Rejects:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._table, self._text):
            if file is not None:
                file.close()

    def write(self, file: str, rejected: list[tuple[int, str]]) -> None:
        if not rejected:
            return
        rows, reasons = zip(*rejected, strict=True)
        files = [file] * len(rows)
        if self._table is not None:
            self._table.write_table(pa.table([files, rows, reasons], schema=_REJECTED))
            return
        assert self._text is not None
        if self._form == "csv":
            csv.writer(self._text).writerows(zip(files, rows, reasons, strict=True))
        else:
            for row, reason in rejected:
                entry = {"file": file, "row": row, "reason": reason}
                self._text.write(json.dumps(entry, ensure_ascii=False) + "\n")
