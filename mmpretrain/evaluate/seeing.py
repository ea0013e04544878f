"""What a model is shown of a sample in evaluation: its picture, its regions, its codes, as in training without augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmpretrain.data.codes import MAX_KNOWN, decode_codes
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.regions import decode_regions
from mmpretrain.data.tags import Tagger
from mmpretrain.data.visual import Shown
from mmpretrain.evaluate.inputs import ImageLike, VisualLike, file_of, holds_codes, holds_regions, picture_of
from mmpretrain.types import Regions, Sample, Visual

_UNNAMED = Sample("", (), ())
TOKENS = "make codes with the autoencoder of the run: mmpretrain data tokens (docs/tools.md)"
MAKE = "make regions with the extractor of the run: mmpretrain data regions (docs/regions.md)"


class Seeing:
    """From a sample, or whatever else people call an image, to what the model is shown.

    Args:
        image: transform of pictures; None: there is none.
        shown: picture, regions, codes, and which regions. Codes beside a picture may be missing: only training needs them.
        width: values of a region's feature that the model takes; None: any number.
        tagger: makes the tags of an image that texts are told with; None: texts stand alone.
        codes: K, which the ids of codes must be below.
    """

    def __init__(self, image: Any, shown: Shown, width: int | None = None, tagger: Tagger | None = None, codes: int = MAX_KNOWN) -> None:
        self.image, self.shown, self.width, self.tagger, self.known = image, shown, width, tagger, codes

    def shows(self, sample: Sample) -> bool:
        """Whether a sample has all that is shown; of several pictures there is none to show."""
        if self.shown.has_regions and not sample.regions:
            return False
        if self.shown.show == "codes" and not sample.codes:
            return False
        return len(sample.images) == 1 if self.shown.has_image else len(sample.images) < 2

    def __call__(self, given: VisualLike) -> Visual:
        """What is shown of ``given``: a sample; regions, or a file of them; a file of codes; a picture in any form; a ``Visual``, what this
        has given before, which is kept.

        Raises:
            ValueError: it lacks what the model reads, or cannot be read (``BadSample``).
        """
        if isinstance(given, Visual):
            found = given
        elif isinstance(given, Sample):
            image = self._transform().read(given.images) if self.shown.has_image and given.images else None
            found = self._tagged(image, self._regions(given.regions) if given.regions else None, given)
            found = found._replace(codes=self._codes(given.codes) if given.codes else None)
        else:
            try:
                found = self._alone(given)
            except BadSample as error:
                if isinstance(given, str | Path):
                    raise BadSample(f"{given}: {error}") from None
                raise
        return self._complete(found)

    def _alone(self, given: ImageLike | Regions) -> Visual:
        if isinstance(given, Regions):
            return self._tagged(None, self._chosen(given))
        data = file_of(given)
        if data is not None and holds_regions(data):
            return self._tagged(None, self._regions(data))
        if data is not None and holds_codes(data):
            return Visual(codes=self._codes(data))
        if not self.shown.has_image:
            return Visual()
        return Visual(self._transform()(picture_of(given)) if data is None else self._transform().read([data]))

    def _tagged(self, image: Tensor | None, regions: Regions | None, sample: Sample = _UNNAMED) -> Visual:
        """With tags; the tables of probabilities, which no model reads, are left behind."""
        tags = None if self.tagger is None else self.tagger.tags(sample, regions)
        return Visual(image, None if regions is None else regions._replace(class_probs=None, attribute_probs=None), tags)

    def _complete(self, found: Visual) -> Visual:
        """The visual without what the model does not read."""
        image, regions = (found.image if self.shown.has_image else None), (found.regions if self.shown.has_regions else None)
        if self.shown.has_image and image is None:
            raise ValueError("this checkpoint reads pictures" + (" and regions: give a Sample with both" if self.shown.has_regions else ""))
        if self.shown.has_regions and regions is None and self.shown.has_image:
            raise ValueError(f"this checkpoint reads pictures and regions: give a Sample with both; {MAKE}")
        if self.shown.has_regions and regions is None:
            raise ValueError(f"this checkpoint reads regions, no pictures: give Regions, a KEY.regions.npz or a Sample with one; {MAKE}")
        if self.shown.show == "codes" and found.codes is None:
            raise ValueError(f"this checkpoint reads image codes, no pictures: give a KEY.codes.npy or a Sample with one; {TOKENS}")
        return found._replace(image=image, regions=regions, codes=found.codes if self.shown.has_codes else None)

    def _transform(self) -> Any:
        if self.image is None:
            raise ValueError("this checkpoint has no image transform: it was trained without images")
        return self.image

    def _codes(self, data: bytes) -> Tensor | None:
        """The codes that are shown, int64 (h, w)."""
        return torch.from_numpy(decode_codes(data, self.known).astype(np.int64)) if self.shown.has_codes else None

    def _regions(self, data: bytes) -> Regions | None:
        return self._chosen(decode_regions(data)) if self.shown.has_regions else None

    def _chosen(self, regions: Regions) -> Regions | None:
        """The regions that are shown."""
        if not self.shown.has_regions:
            return None
        if self.width is not None and regions.features.shape[1] != self.width:
            raise DataError(f"the regions have features of {regions.features.shape[1]} values, the model takes {self.width}; {MAKE}")
        if not len(regions.boxes):
            raise BadSample("there is no region")
        return self.shown.regions.choose(regions)
