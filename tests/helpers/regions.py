"""Small regions for tests."""

from __future__ import annotations

import numpy as np

from mmpretrain.types import Regions


def arrays(count: int = 4, width: int = 5, size: tuple[int, int] = (48, 64), seed: int = 0) -> dict[str, np.ndarray]:
    """Every array of the schema for ``count`` regions of a picture of ``size`` (height, width)."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((count, 2, 2)), axis=1).reshape(count, 4) * np.asarray([size[1], size[0]] * 2)
    probabilities = rng.dirichlet(np.ones(3), count).reshape(count, 3)
    return {
        "features": rng.standard_normal((count, width)).astype(np.float16),
        "boxes": corners.astype(np.float32),
        "image_size": np.asarray(size, dtype=np.int32),
        "classes": probabilities.argmax(1).astype(np.int16),
        "class_probs": probabilities.astype(np.float16),
        "attributes": np.full(count, -1, dtype=np.int16),
        "attribute_probs": (probabilities[:, :2] / 2).astype(np.float16),
        "scores": rng.random(count).astype(np.float32),
        "global_feature": rng.standard_normal(width).astype(np.float16),
    }


def made(count: int = 4, width: int = 5, seed: int = 0) -> Regions:
    """Regions with every array."""
    return Regions(**arrays(count, width, seed=seed))
