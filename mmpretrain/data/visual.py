"""What is shown of a sample: its picture, its regions, its image codes, two of them; which of its regions, and in what order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from mmpretrain.data.errors import DataError
from mmpretrain.data.image import ImageTransform
from mmpretrain.types import Regions

SHOWS = ("image", "regions", "both", "codes", "image+codes")  # both: image and regions
ORDERS = ("stored", "score")


@dataclass(frozen=True)
class RegionOptions:
    """Which regions of a picture are shown. UNITER takes those of a score above 0.2, but at least 10 and at most 100
    (``min_score=0.2, least=10, most=100``); Unicoder-VL the 100 best (``order=score, least=100``); LXMERT 36 (``most=36``).

    The score of a region is that of its detector, or, where the file has none, the largest of its class probabilities.

    Args:
        most: regions of a picture; those behind in ``order`` are left out.
        order: ``stored``: as they lie in the file; ``score``: the best first (VL-BERT, arXiv 1908.08530, released code).
        min_score: only regions of a higher score are shown, beside the ``least`` best; 0: all.
        least: the best so many, whatever their score; a picture that has fewer shows all it has.

    Raises:
        DataError: an option out of its range.
    """

    most: int = 100
    order: Literal["stored", "score"] = "stored"
    min_score: float = 0.0
    least: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise DataError(f"data.regions: least={self.least} and most={self.most} must be ascending and at least 1")
        if not 0 <= self.min_score < 1:
            raise DataError(f"data.regions.min_score={self.min_score} must be from 0 to 1, below 1")
        if self.order not in ORDERS:
            raise DataError(f"data.regions.order={self.order!r}; take one of {', '.join(ORDERS)}")

    def choose(self, regions: Regions) -> Regions:
        """The regions that are shown, in ``order``; at least one where there is one.

        Raises:
            DataError: scores are asked for, and the file has neither scores nor class probabilities.
        """
        count = len(regions.boxes)
        if self.order == "stored" and not self.min_score:
            return regions if count <= self.most else _taken(regions, np.arange(self.most))
        scores = _scores(regions)
        best = np.argsort(-scores, kind="stable")
        good = max(int(np.count_nonzero(scores > self.min_score)), self.least) if self.min_score else count
        kept = best[:good] if self.order == "score" else np.sort(best[:good])
        return _taken(regions, kept[: self.most])


def _scores(regions: Regions) -> np.ndarray:
    if regions.scores is not None:
        return regions.scores
    if regions.class_probs is not None:
        return regions.class_probs.max(axis=1, initial=0).astype(np.float32)
    raise DataError("its regions have neither scores nor class_probs; set data.regions.order=stored and data.regions.min_score=0")


def _taken(regions: Regions, rows: np.ndarray) -> Regions:
    """The regions ``rows`` in this order; what belongs to the whole picture stays."""
    whole = ("image_size", "global_feature")
    return Regions(**{name: x if x is None or name in whole else x[rows] for name, x in regions._asdict().items()})


class Shown(NamedTuple):
    """What a source shows of its samples."""

    show: str = "image"
    regions: RegionOptions = RegionOptions()

    @property
    def has_image(self) -> bool:
        return self.show in ("image", "both", "image+codes")

    @property
    def has_regions(self) -> bool:
        return self.show in ("regions", "both")

    @property
    def has_codes(self) -> bool:
        return self.show in ("codes", "image+codes")

    @property
    def augments(self) -> bool:
        """Whether pictures may be augmented in training: there are no codes that would have to move along."""
        return self.show != "image+codes"

    @property
    def wants(self) -> str:
        """What a sample needs, in words."""
        shown = {"a picture": self.has_image, "regions": self.has_regions, "image codes": self.has_codes}
        return ", ".join(name for name, there in shown.items() if there)

    def check(self, image: ImageTransform) -> Shown:
        """Itself, if it fits the transform of pictures.

        Raises:
            DataError: an unknown name, or pictures that would be moved away from their boxes or codes.
        """
        if self.show not in SHOWS:
            raise DataError(f"data.show={self.show!r}; take one of {', '.join(SHOWS)}")
        fixed = image.mode in ("vilt", "squash") or (self.has_codes and image.mode == "clip" and tuple(image.crop_scale) == (1, 1))
        moved = {f"mode={image.mode}": not fixed, "flip": image.flip, "randaugment": image.randaugment}
        if self.show in ("both", "image+codes") and any(moved.values()):
            name = next(name for name, on in moved.items() if on)
            away = "the boxes of their regions" if self.has_regions else "their codes"
            other = "data.show=regions" if self.has_regions else "mode=clip with crop_scale=[1, 1], which shows the middle square"
            raise DataError(
                f"data.show={self.show}: data.image.{name} moves pictures away from {away}; "
                f"take mode=vilt or mode=squash without flip and randaugment, or {other}"
            )
        return self
