"""Building a Bento: the code that serves, one verified bundle, and a lock with hashes.

`parityline build` and plain `bentoml build` both come here, `serving.bento` gives BentoML the
`PackedImage`. Nothing else of the store goes in, nor anything that is not named here or in
`bentofile.yaml`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bentoml.exceptions import BentoMLException, InvalidArgument
from bentoml.images import Image

from artifacts.bundle import Bundle, copy_bundle
from artifacts.errors import BundleError, DataError, ParitylineError
from artifacts.manifest import EXPORT, ONNX, STATE_DICT, TORCHSCRIPT
from artifacts.references import only_name, open_reference, promote, store_path
from serving.settings import Settings, read_settings

if TYPE_CHECKING:
    from bentoml import Bento

_ROOMS = ("artifacts", "serving")
# Of each room; the page's own files are not code.
_PACKED_PATTERNS = (
    "*.py", "page/*.py", "page/static/*.html", "page/static/*.css", "page/static/*.js",
    "page/static/*.svg", "page/static/*.LICENSE",
)  # fmt: skip
_SOURCE = Path(__file__).parent.parent
_STORE = Path("artifacts", "store")
_PACKED = "packed.json"
_FILES = {"onnx": ONNX, "torchscript": TORCHSCRIPT, "export": EXPORT, "eager": STATE_DICT}


class PackedImage(Image):  # type: ignore[misc]
    """Adds to a Bento that is being built what the environment names, as for `bentoml serve`.

    BentoML calls it when the code has been copied. It has no option of its own by which a build
    chooses files.
    """

    @classmethod
    def of_python(cls) -> PackedImage:
        """Python alone: every package of the locks is a wheel, no compiler is needed."""
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return cls(base_image=f"python:{version}-slim", distro="", python_version=version)

    def freeze(self, bento_fs: Path, envs: Any, platform_: str | None = None) -> Any:
        """Pack the bundle, then what BentoML itself makes: Dockerfile and requirements."""
        try:
            settings = read_settings()
            bundle = open_reference(store_path(), settings.bundle or only_name(store_path()))
            pack(bundle, settings, bento_fs / "src")
        except ParitylineError as error:
            shutil.rmtree(bento_fs)
            raise InvalidArgument(str(error)) from error
        return super().freeze(bento_fs, envs, platform_)

    def _freeze_python_requirements(self, bento_fs: Path, platform_: str | None = None) -> str:
        # BentoML's own adds itself once more, without a hash, which an installer that requires
        # hashes refuses; and it installs uv where there is none.
        return lock_path(read_settings()).read_text(encoding="utf-8")


def pack(bundle: Bundle, settings: Settings, source: Path) -> None:
    """Put a bundle into a Bento's source folder, as its store's only one, promoted.

    Raises BundleError where the bundle has no file for the backend.
    """
    manifest = bundle.manifest
    if _FILES[settings.backend] not in manifest.files:
        raise BundleError(
            f"{manifest.reference}: backend {settings.backend!r} needs {_FILES[settings.backend]}, "
            f"this bundle has {', '.join(sorted(manifest.files))}"
        )
    copy_bundle(bundle, source / _STORE)
    promote(source / _STORE, manifest.reference)
    packed = {
        "bundle": manifest.reference, "backend": settings.backend, "device": settings.device,
    }  # fmt: skip
    (source / _PACKED).write_text(json.dumps(packed) + "\n", encoding="utf-8")


def enter(environment: MutableMapping[str, str], source: Path = _SOURCE) -> None:
    """In a Bento, make it serve the bundle that it holds with the code that it holds.

    Whatever the working directory and $PARITYLINE_STORE are; backend and device may still be
    chosen. Where `source` is no Bento's, nothing changes.
    """
    file = source / _PACKED
    if not file.is_file():
        return
    packed: Mapping[str, str] = json.loads(file.read_text(encoding="utf-8"))
    environment["PARITYLINE_STORE"] = str(source / _STORE)
    environment["PARITYLINE_BUNDLE"] = packed["bundle"]
    for key in ("backend", "device"):
        name = f"PARITYLINE_{key.upper()}"
        environment[name] = environment.get(name) or packed[key]
    # For the process that checks the bundle first: not the code in the working directory.
    environment["PYTHONSAFEPATH"] = "1"
    path = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if str(source) not in path:
        environment["PYTHONPATH"] = os.pathsep.join([str(source), *path])


def lock_path(settings: Settings) -> Path:
    """The lock that a backend and a device need; made by `make lock`."""
    if settings.backend != "onnx":
        name = "requirements-torch.lock"
    elif settings.device == "cpu":
        name = "requirements-cpu.lock"
    else:
        name = "requirements.lock"
    return Path(__file__).with_name(name)


def build(
    reference: str, *, backend: str, device: str, name: str | None, output: Path | None
) -> Bento:
    """Build a Bento of a bundle into BentoML's store, and write it to a .bento file if asked to.

    name: of the Bento, by default the bundle's.
    Raises BundleError and DataError naming what is wrong with the bundle, the name or the file.
    """
    from bentoml import bentos

    bundle = open_reference(store_path(), reference)
    manifest = bundle.manifest
    if output is not None and (output.suffix != ".bento" or output.exists()):
        found = "it is there already" if output.exists() else f"found {output.name!r}"
        raise DataError(f"{output}: expected a new file that ends in .bento, {found}")
    os.environ.update(
        PARITYLINE_BUNDLE=str(bundle.path.resolve()),
        PARITYLINE_BACKEND=backend,
        PARITYLINE_DEVICE=device,
    )
    try:
        with _context() as context:
            bento = bentos.build(
                "serving.bento:Classifier",
                name=name or manifest.name.lower(),
                description=f"{manifest.reference}, packed by Parityline.",
                labels={
                    "project": "parityline", "bundle": manifest.reference, "backend": backend,
                },
                build_ctx=str(context),
            )  # fmt: skip
        if output is not None:
            bento.export(str(output.resolve()))
    # ValueError: a name that BentoML's tags cannot hold.
    except (BentoMLException, ValueError, OSError) as error:
        raise DataError(f"{manifest.reference}: no Bento was built: {error}") from error
    return bento


@contextmanager
def _context() -> Iterator[Path]:
    """A folder with the code that serves, from wherever it is installed, and nothing else."""
    with tempfile.TemporaryDirectory(prefix="parityline-build-") as folder:
        for room in _ROOMS:
            for pattern in _PACKED_PATTERNS:
                for file in sorted((_SOURCE / room).glob(pattern)):
                    target = Path(folder) / file.relative_to(_SOURCE)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, target)
        yield Path(folder)
