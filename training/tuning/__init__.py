"""How a study looks for a better recipe."""
