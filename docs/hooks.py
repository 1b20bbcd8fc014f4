"""What mkdocs calls: adds the reference pages, made of the code, and drops notes to the tests.

make docs
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent.parent))

from docs.reference import pages

# tests/documented.py reads them; readers need not.
_NOTE = re.compile(r"^[ \t]*<!-- test: .*? -->\n", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, never written to docs/."""
    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page without what only tests read."""
    return _NOTE.sub("", markdown)
