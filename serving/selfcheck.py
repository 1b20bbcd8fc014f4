"""Which bundle a service serves, and the check before it starts.

python -m serving.selfcheck BUNDLE [URL]
"""

from __future__ import annotations

import sys
from pathlib import Path

from artifacts.errors import ParitylineError
from artifacts.predictor import open_bundle
from artifacts.references import only_name, resolve, store_path
from serving.settings import Settings, read_settings
from serving.tokens import Tokens


def reference_of(settings: Settings) -> str:
    """As set, or the store's only name. Raises BundleError."""
    return settings.bundle or only_name(store_path())


def resolved(settings: Settings) -> Path:
    """The directory that the reference stands for at this moment. Raises BundleError."""
    return resolve(store_path(), reference_of(settings)).absolute()


def main() -> None:
    """Exit 0 and say what will be served, or exit 1 with one line saying why it will not be."""
    from artifacts.example import curl_line

    path, url = sys.argv[1], "".join(sys.argv[2:3])
    try:
        settings = read_settings()
        if settings.tokens is not None:
            Tokens(settings.tokens)
        predictor = open_bundle(path, backend=settings.backend, device=settings.device)
    except ParitylineError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    manifest = predictor.manifest
    print(
        f"serving {manifest.reference}: {predictor.backend} on {predictor.device}, "
        f"{predictor.checked.rows} golden rows agree",
        flush=True,
    )
    if url:
        with_token = settings.tokens is not None
        line = curl_line(manifest, predictor.golden, url, with_token=with_token)
        print(f"\n{line}\n", flush=True)


if __name__ == "__main__":
    main()
