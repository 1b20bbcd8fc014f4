"""The reference: pages of Markdown made from the code's own words, never kept as copies."""

from __future__ import annotations

from docs.reference import commands, environment, http, python_api, recipes


def pages() -> dict[str, str]:
    """Markdown by its path in the documentation."""
    return {
        "reference/commands.md": commands.page(),
        "reference/recipe.md": recipes.page(),
        "reference/environment.md": environment.page(),
        "reference/http.md": http.page(),
        "reference/python.md": python_api.page(),
    }
