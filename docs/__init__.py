"""The documentation: pages, and what makes its reference from the code."""
