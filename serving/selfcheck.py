"""Opening the bundle that a service serves, and the check before it starts.

python -m serving.selfcheck [URL]
"""

from __future__ import annotations

import sys

from artifacts.errors import ParitylineError
from artifacts.predictor import Predictor, open_bundle
from artifacts.references import only_name, store_path
from serving.settings import Settings, read_settings


def open_served(settings: Settings) -> Predictor:
    """The predictor that the settings name, verified and self-checked on its device."""
    reference = settings.bundle or only_name(store_path())
    return open_bundle(reference, backend=settings.backend, device=settings.device)


def main() -> None:
    """Exit 0 and say what will be served, or exit 1 with one line saying why it will not be."""
    from serving.example import curl_line

    url = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        predictor = open_served(read_settings())
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
        print(f"\n{curl_line(manifest, predictor.golden, url)}\n", flush=True)


if __name__ == "__main__":
    main()
