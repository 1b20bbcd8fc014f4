"""The bundle on disk: complete or not there, and never opened before its digests are checked.

Writing: a temporary sibling, every file fsynced, the manifest last, then one rename. Reading: the
manifest, then size and sha256 of every file; extra, missing and changed files are named.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydantic

from artifacts.errors import BundleError
from artifacts.manifest import BUNDLE_FILES, GOLDEN, SCHEMA_VERSION, FileInfo, Manifest

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 * 2**20
_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class Golden:
    """Held-out raw inputs and what the eager model answered.

    raw: [N, *input shape] uint8 or float64; logits, probabilities: [N, K] float32; labels: [N]
    int64 true classes, -1 where there is none (synthetic rows).
    """

    raw: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray
    labels: np.ndarray

    def encode(self) -> bytes:
        """As the bytes of `golden.npz`."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            raw=self.raw,
            logits=self.logits,
            probabilities=self.probabilities,
            labels=self.labels,
        )
        return buffer.getvalue()


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: `path` is its directory."""

    path: Path
    manifest: Manifest

    def read(self, file: str) -> bytes:
        """The bytes of one file, checked again on the very bytes that are returned."""
        data = (self.path / file).read_bytes()
        problem = _compare(file, self.manifest.files[file], len(data), _sha256(data))
        if problem:
            raise BundleError(f"{self.path}: {problem}")
        return data

    def golden(self) -> Golden:
        """The held-out rows that every backend must answer as eager did."""
        try:
            with np.load(io.BytesIO(self.read(GOLDEN)), allow_pickle=False) as arrays:
                golden = Golden(**{key: arrays[key] for key in Golden.__dataclass_fields__})
        except (ValueError, KeyError, OSError, EOFError) as error:
            raise BundleError(f"{self.path / GOLDEN}: not a golden file: {error}") from error
        rows, classes = len(golden.raw), len(self.manifest.labels)
        expected = {
            "raw": (rows, *self.manifest.input.shape),
            "logits": (rows, classes),
            "probabilities": (rows, classes),
            "labels": (rows,),
        }
        for key, shape in expected.items():
            if getattr(golden, key).shape != shape or rows == 0:
                raise BundleError(
                    f"{self.path / GOLDEN}: expected {key} of shape {shape} with at least one "
                    f"row, found {getattr(golden, key).shape}"
                )
        return golden


def write_bundle(store: Path, draft: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Release `files` under `store/NAME/VERSION` and return the bundle, read back.

    draft: a manifest without version and file digests; both are filled in here.
    A bundle with the same content that is there already is verified and returned as it is.
    Raises BundleError when the disk refuses; nothing is left behind then.
    """
    assert sorted(files) == sorted(BUNDLE_FILES), sorted(files)
    infos = {name: FileInfo(size=len(data), sha256=_sha256(data)) for name, data in files.items()}
    manifest = draft.model_copy(update={"files": infos})
    manifest = manifest.model_copy(update={"version": manifest.content_version()})
    shelf = store / manifest.name
    target = shelf / manifest.version
    try:
        shelf.mkdir(parents=True, exist_ok=True)
        with _temporary_directory(shelf) as temporary:
            for name, data in files.items():
                _write_synced(temporary / name, data)
            text = manifest.model_dump_json(indent=2) + "\n"
            _write_synced(temporary / MANIFEST, text.encode())
            _sync_directory(temporary)
            with contextlib.suppress(FileExistsError):
                _rename_new(temporary, target)
            _sync_directory(shelf)
    except OSError as error:
        raise BundleError(f"{target}: the bundle could not be written: {error}") from error
    return read_bundle(target)


def read_bundle(path: Path) -> Bundle:
    """The bundle at `path`, every file of it verified.

    Raises BundleError naming each file that is missing, extra or changed, what was expected and
    what was found; and for a manifest that is missing, cut short, of an unknown schema version,
    or not the content that its version stands for.
    """
    manifest = read_manifest(path)
    found = {entry.name for entry in path.iterdir()} - {MANIFEST}
    problems = [f"{name}: unexpected file" for name in sorted(found - set(BUNDLE_FILES))]
    for name, info in manifest.files.items():
        if name not in found:
            problems.append(f"{name}: missing (expected {info.size} bytes)")
            continue
        with (path / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        problem = _compare(name, info, (path / name).stat().st_size, digest)
        if problem:
            problems.append(problem)
    if problems:
        raise BundleError(f"{path}: {'; '.join(problems)}")
    return Bundle(path, manifest)


def read_manifest(path: Path) -> Manifest:
    """The manifest of the bundle at `path`, its own content checked, no other file opened."""
    file = path / MANIFEST
    if not path.is_dir():
        raise BundleError(f"{path}: no bundle there (expected a directory with {MANIFEST})")
    if not file.is_file():
        raise BundleError(f"{path}: {MANIFEST} is missing: not a bundle, or not a complete one")
    if file.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{file}: expected at most {MAX_MANIFEST_BYTES} bytes")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file}: not JSON, or cut short: {error}") from error
    schema = content.get("schema_version") if isinstance(content, dict) else None
    if schema != SCHEMA_VERSION:
        raise BundleError(f"{file}: expected schema_version {SCHEMA_VERSION}, found {schema!r}")
    try:
        manifest = Manifest.model_validate(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the manifest"
        raise BundleError(f"{file}: {where}: {first['msg']}") from error
    if sorted(manifest.files) != sorted(BUNDLE_FILES):
        raise BundleError(
            f"{file}: files: expected {sorted(BUNDLE_FILES)}, found {sorted(manifest.files)}"
        )
    expected = manifest.content_version()
    if manifest.version != expected:
        raise BundleError(
            f"{file}: expected version {expected}, which its content has, "
            f"found {manifest.version}: the manifest was changed"
        )
    return manifest


def _compare(name: str, info: FileInfo, size: int, sha256: str) -> str | None:
    if size != info.size:
        return f"{name}: expected {info.size} bytes, found {size}"
    if sha256 != info.sha256:
        return f"{name}: expected sha256 {info.sha256[:16]}..., found {sha256[:16]}..."
    return None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_new(source: Path, target: Path) -> None:
    """Rename a directory to a name that must not exist as a non-empty directory."""
    try:
        source.rename(target)
    except OSError as error:
        if target.is_dir():
            raise FileExistsError(str(target)) from error
        raise


@contextlib.contextmanager
def _temporary_directory(shelf: Path) -> Iterator[Path]:
    """A directory that only this process writes; what killed processes left is swept first.

    The directory is locked as long as its writer lives, and made and swept under the shelf's own
    lock, so that a sweep never takes a live one.
    """
    with contextlib.ExitStack() as writing:
        with _locked(shelf):
            for left in shelf.glob(f"{_TEMPORARY}*"):
                with contextlib.suppress(OSError), _locked(left, wait=False):
                    shutil.rmtree(left, ignore_errors=True)
            temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=shelf))
            writing.callback(shutil.rmtree, temporary, ignore_errors=True)
            writing.enter_context(_locked(temporary))
        # mkdtemp gives 0700; a bundle is read by whoever may read the store.
        temporary.chmod(0o755)
        yield temporary


@contextlib.contextmanager
def _locked(directory: Path, *, wait: bool = True) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
