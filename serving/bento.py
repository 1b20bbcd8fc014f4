"""What `bentofile.yaml` names: the service, and what a Bento of it holds.

    PARITYLINE_BUNDLE=digits bentoml build

BentoML imports this to build a Bento, to serve one, and in each worker of it.
"""

from __future__ import annotations

import os

from serving.packing import PackedImage, enter

# In a Bento, before anything of it is decided, the number of workers too; elsewhere nothing.
enter(os.environ)

from serving.service import Classifier  # noqa: E402

# What is named like the class is BentoML's service of it.
Classifier.image = PackedImage.of_python()  # type: ignore[attr-defined]

__all__ = ["Classifier"]
