"""The bundle on disk: complete or not there, and never opened before its digests are checked.

Writing: a temporary sibling, every file fsynced, the manifest last, then one rename. Reading: the
manifest, then size and sha256 of every file; extra, missing and changed files are named.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pydantic

from artifacts.errors import BundleError
from artifacts.evidence import MAX_EVIDENCE_BYTES, Evidence, decode_evidence
from artifacts.files import sync
from artifacts.gate_report import GateReport, decode_gate_report
from artifacts.golden import Golden as Golden
from artifacts.golden import decode_golden
from artifacts.inputs import first_problem
from artifacts.manifest import (
    EVIDENCE,
    GOLDEN,
    PARITY,
    REPORT,
    REQUIRED_FILES,
    SCHEMA_VERSION,
    FileInfo,
    Manifest,
    content_sha256,
)
from artifacts.shelves import MANIFEST, VERSION_LENGTH

MAX_MANIFEST_BYTES = 16 * 2**20
_TEMPORARY = ".tmp-"
# What a file manager leaves behind by looking.
_IGNORED = {".DS_Store"}


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: `path` is its directory."""

    path: Path
    manifest: Manifest

    def read(self, file: str) -> bytes:
        """The bytes of one file, checked again on the very bytes that are returned."""
        if file not in self.manifest.files:
            raise BundleError(f"{self.path}: this bundle has no {file}")
        try:
            data = (self.path / file).read_bytes()
        except OSError as error:
            raise BundleError(f"{self.path / file}: cannot be read: {error}") from error
        problem = _compare(file, self.manifest.files[file], len(data), _sha256(data))
        if problem:
            raise BundleError(f"{self.path}: {problem}")
        return data

    def evidence(self) -> Evidence | None:
        """What the release found out beyond the metrics; None in a bundle that has none.

        Raises BundleError where it is too large, not what it should be, or not of this model.
        """
        if EVIDENCE not in self.manifest.files:
            return None
        file = self.path / EVIDENCE
        size = self.manifest.files[EVIDENCE].size
        if size > MAX_EVIDENCE_BYTES:
            raise BundleError(f"{file}: expected at most {MAX_EVIDENCE_BYTES} bytes, found {size}")
        try:
            return decode_evidence(self.read(EVIDENCE), self.manifest)
        except ValueError as error:
            raise BundleError(f"{file}: {error}") from error

    def parity(self) -> GateReport:
        """What the gate found. Raises BundleError where it is not what it should be."""
        try:
            return decode_gate_report(self.read(PARITY))
        except ValueError as error:
            raise BundleError(f"{self.path / PARITY}: {error}") from error

    def golden(self) -> Golden:
        """The held-out rows that every backend must answer as eager did.

        Raises BundleError unless it holds what it should.
        """
        payload = self.read(GOLDEN)
        try:
            return decode_golden(payload, self.manifest)
        except ValueError as error:
            raise BundleError(f"{self.path / GOLDEN}: {error}") from error


def write_bundle(
    store: Path,
    draft: Manifest,
    files: Mapping[str, bytes],
    report: Callable[[Manifest], bytes] | None = None,
) -> Bundle:
    """Release `files` under `store/NAME/VERSION` and return the bundle, read back.

    draft: a manifest without version, content hash and file digests, which are filled in here.
    report: makes report.html, which the version does not cover, of the manifest as it then is.
    A bundle with the same content that is there already is verified and returned as it is, with
    the time, the speeds and so the report of its own release.
    Raises BundleError when the disk refuses; nothing is left behind then.
    """
    assert set(REQUIRED_FILES) <= set(files), sorted(files)
    content = draft.model_dump(mode="json")
    content["files"] = {name: _file_info(data) for name, data in files.items()}
    content["content_sha256"] = content_sha256(content)
    content["version"] = content["content_sha256"][:VERSION_LENGTH]
    if report is not None:
        assert REPORT not in files
        page = report(Manifest.model_validate(content))
        files = {**files, REPORT: page}
        content["files"][REPORT] = _file_info(page)
    text = json.dumps(content, indent=2) + "\n"
    return _release(store, draft.name, content["content_sha256"], files, text.encode())


def copy_bundle(bundle: Bundle, store: Path) -> Bundle:
    """The same bundle under `store/NAME/VERSION`, byte for byte, read back.

    Every byte is verified before the copy appears. What is there already is verified and returned
    as it is, though its report may be of another run that gave the same version. Raises BundleError
    when the bundle changes meanwhile or the disk refuses; nothing is left behind then.
    """
    manifest = bundle.manifest
    try:
        text = (bundle.path / MANIFEST).read_bytes()
    except OSError as error:
        raise BundleError(f"{bundle.path / MANIFEST}: cannot be read: {error}") from error
    files = {name: bundle.read(name) for name in manifest.files}
    return _release(store, manifest.name, manifest.content_sha256, files, text)


def _release(
    store: Path, name: str, content_sha256: str, files: Mapping[str, bytes], manifest: bytes
) -> Bundle:
    """Write verified files and their manifest as one, unless that version is there already.

    Two bundles of one version differ in nothing but what `content_sha256` leaves out: the one that
    was first is kept, whole, so that a file that is being read never changes.
    """
    shelf = store / name
    target = shelf / content_sha256[:VERSION_LENGTH]
    try:
        shelf.mkdir(parents=True, exist_ok=True)
        sync(store)
        with _temporary_directory(shelf) as temporary:
            for file, data in files.items():
                _write_synced(temporary / file, data)
            _write_synced(temporary / MANIFEST, manifest)
            if read_manifest(temporary).content_sha256 != content_sha256:
                raise BundleError(f"{target}: its manifest was changed while it was copied")
            sync(temporary)
            with contextlib.suppress(FileExistsError):
                _rename_new(temporary, target)
            sync(shelf)
    except OSError as error:
        raise BundleError(f"{target}: the bundle could not be written: {error}") from error
    try:
        return read_bundle(target)
    except BundleError as error:
        raise BundleError(
            f"{error} (it was there before this run and is damaged: delete it and run again)"
        ) from error


def read_bundle(path: Path) -> Bundle:
    """The bundle at `path`, every file of it verified.

    Raises BundleError naming each file that is missing, extra or changed, what was expected and
    what was found; and for a manifest that is missing, cut short, of an unknown schema version,
    or not the content that its version stands for.
    """
    manifest = read_manifest(path)
    try:
        found = {entry.name for entry in path.iterdir()} - {MANIFEST} - _IGNORED
        problems = [f"{name}: unexpected file" for name in sorted(found - set(manifest.files))]
        for name, info in manifest.files.items():
            if name not in found:
                problems.append(f"{name}: missing (expected {info.size} bytes)")
                continue
            if not (path / name).is_file():
                problems.append(f"{name}: expected a file, found something else")
                continue
            with (path / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            problem = _compare(name, info, (path / name).stat().st_size, digest)
            if problem:
                problems.append(problem)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error}") from error
    if problems:
        raise BundleError(f"{path}: {'; '.join(problems)}; copy it again, or train it anew")
    return Bundle(path, manifest)


def read_manifest(path: Path) -> Manifest:
    """The manifest of the bundle at `path`, its own content checked, no other file opened."""
    file = path / MANIFEST
    try:
        if not path.is_dir():
            raise BundleError(f"{path}: no bundle there (expected a directory with {MANIFEST})")
        if not file.is_file():
            raise BundleError(f"{path}: {MANIFEST} is missing: not a bundle, or an incomplete one")
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{file}: expected at most {MAX_MANIFEST_BYTES} bytes")
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file}: not JSON, or cut short: {error}") from error
    schema = content.get("schema_version") if isinstance(content, dict) else None
    if type(schema) is not int or schema != SCHEMA_VERSION:
        raise BundleError(f"{file}: expected schema_version {SCHEMA_VERSION}, found {schema!r}")
    try:
        manifest = Manifest.model_validate(content)
    except pydantic.ValidationError as error:
        raise BundleError(f"{file}: {first_problem(error)}") from error
    absent = [name for name in REQUIRED_FILES if name not in manifest.files]
    if absent:
        raise BundleError(f"{file}: files: expected {', '.join(absent)} among them")
    expected = content_sha256(content)
    found = (manifest.content_sha256, manifest.version)
    if found != (expected, expected[:VERSION_LENGTH]):
        raise BundleError(
            f"{file}: expected content_sha256 {expected[:16]}..., which its content has, "
            f"found {found[0][:16]}... and version {found[1]}: the manifest was changed"
        )
    return manifest


def _file_info(data: bytes) -> dict[str, int | str]:
    return {"size": len(data), "sha256": _sha256(data)}


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
