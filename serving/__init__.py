"""How a model is offered: the BentoML service, its HTTP routes, and offline scoring.

This room opens bundles through `artifacts` and knows nothing of how they were trained.
"""
