"""The page at /: what the served model is, and trying it, without a word to any other server.

`Page` makes the HTML and hands out the examples and the report; `files` has what the HTML loads.
"""

from serving.page.page import Page

__all__ = ["Page"]
