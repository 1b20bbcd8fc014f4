"""The page at /: what this model is and how to call it, without a word to any other server."""

from __future__ import annotations

import html

from artifacts.bundle import Golden
from artifacts.configs import describe_network
from artifacts.example import curl_line
from artifacts.inputs import ImageInput
from artifacts.manifest import Manifest
from artifacts.summary import describe_input

_STYLE = """
:root { color-scheme: light dark } body { font: 16px/1.5 system-ui, sans-serif;
max-width: 46rem; margin: 2rem auto; padding: 0 1rem } pre { background: #8882; padding: 1rem;
white-space: pre-wrap; overflow-wrap: anywhere }
td, th { text-align: left; padding: .2rem 1rem .2rem 0 }
"""


def render_page(
    manifest: Manifest, golden: Golden, device: str, url: str, *, with_token: bool
) -> str:
    """One self-contained HTML page of facts, with a request that works as it stands.

    url: where the caller reached the service, without a slash at its end. with_token: one is asked
    for.
    """
    takes = describe_input(manifest.input)
    if isinstance(manifest.input, ImageInput):
        takes += "; others are resized"
    facts = {
        "labels": ", ".join(manifest.labels),
        "input": takes,
        "network": f"{describe_network(manifest.network)}, {manifest.parameters:,} parameters",
        "created": manifest.created,
        "runs on": device,
    }
    if "test" in manifest.metrics:
        accuracy = manifest.metrics["test"].accuracy
        facts["test accuracy"] = (
            f"{accuracy.value:.4f} (95% interval {accuracy.low:.4f} to {accuracy.high:.4f}, "
            f"{manifest.metrics['test'].rows} rows)"
        )
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in facts.items()
    )
    curl = curl_line(manifest, golden, url, with_token=with_token)
    title = html.escape(manifest.reference)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{_STYLE}</style></head><body>
<h1>{title}</h1><table>{rows}</table>
<h2>Call it</h2><pre>{html.escape(curl)}</pre>
<p><a href="docs.json">OpenAPI document</a>, <a href="model">manifest</a>,
<a href="metrics">metrics</a></p></body></html>
"""
