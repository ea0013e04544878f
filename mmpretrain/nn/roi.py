"""Features of boxes from pixels, trained along: the head of a Fast R-CNN (Girshick, arXiv 1504.08083) on a residual network, as VL-BERT
trains it end to end (arXiv 1908.08530, section 3.2).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from mmpretrain.nn.cnn import ResNet, by_size, cut
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Layout
from mmpretrain.types import Pixels, RegionBatch

STRIDE = 16  # of the map that boxes are cut from


def erase(pixels_BCHW: Tensor, boxes_N4: Tensor, sample_N: Tensor, erased_N: Tensor) -> Tensor:
    """The pixels with zeros in some boxes: from one corner to the other in whole pixels, both included. Nothing waits for the device.

    Args:
        boxes_N4: x1 y1 x2 y2 in pixels.
        sample_N: the picture of each box.
        erased_N: bool.
    """
    b, _, height, width = pixels_BCHW.shape
    x1, y1, x2, y2 = boxes_N4.long().unbind(1)
    x1, x2 = x1.clamp(0, width), (x2 + 1).clamp(0, width)
    y1, y2 = y1.clamp(0, height), (y2 + 1).clamp(0, height)
    # corners of boxes summed up along both axes: how many erased boxes lie over a pixel
    corners_BHW = torch.zeros(b, height + 1, width + 1, device=pixels_BCHW.device)
    for y, x, sign in ((y1, x1, 1.0), (y1, x2, -1.0), (y2, x1, -1.0), (y2, x2, 1.0)):
        corners_BHW.index_put_((sample_N, y, x), sign * erased_N.float(), accumulate=True)
    over_BHW = corners_BHW.cumsum(1).cumsum(2)[:, :height, :width]
    return pixels_BCHW.masked_fill(over_BHW[:, None] > 0.5, 0)


class BoxFeatures(nn.Module):
    """Pixels and boxes -> features: three stages of the network over the picture, ROIAlign, the fourth over each box, mean.

    Pictures of one size go through the network together, without padding (see ``nn.cnn``).

    Args:
        cnn: VL-BERT's is ``{name: resnet101, norm: fixed, freeze: 2, dilated: true, stride_in_1x1: true}``.
        cells: side of the grid that is read of each box.
        samples: points along each side of a cell.
        mask_pixels: the pixels of removed boxes are zero (the mean colour) before the network sees them.
    """

    def __init__(self, cnn: ResNet, cells: int = 14, samples: int = 1, mask_pixels: bool = True) -> None:
        super().__init__()
        self.cnn, self.cells, self.samples, self.mask_pixels = cnn, cells, samples, mask_pixels

    @property
    def features(self) -> int:
        """Values of a feature."""
        return self.cnn.channels[-1]

    def forward(self, image: Pixels, objects: RegionBatch) -> Tensor:
        """The feature of every box, (N, F).

        Args:
            image: pixels as the transform made them.
            objects: boxes in pixels of pictures of ``objects.sizes``; they are scaled to the sizes of ``image``.

        Raises:
            ValueError: pixels of another number of samples.
        """
        if len(image.sizes) != len(objects.lengths):
            raise Misfit(f"pixels of {len(image.sizes)} samples and boxes of {len(objects.lengths)}; set data.show: both")
        layout, device = Layout(objects.lengths), objects.boxes_N4.device
        scales = [(iw / w, ih / h, iw / w, ih / h) for (ih, iw), (h, w) in zip(image.sizes, objects.sizes, strict=True)]
        scale_B4 = torch.tensor(scales, dtype=torch.float32).to(device, non_blocking=True)
        boxes_N4 = objects.boxes_N4.float() * scale_B4.index_select(0, layout.sample_N(device))
        rows, found = [], []
        for size, pictures in by_size(image.sizes).items():
            mine = np.concatenate([np.arange(layout.starts[i], layout.starts[i + 1]) for i in pictures])
            rows.append(mine)
            mine_N = torch.from_numpy(mine).to(device, non_blocking=True)
            removed_N = None if objects.removed_N is None else objects.removed_N.index_select(0, mine_N)
            own = Layout(tuple(layout.lengths[i] for i in pictures))
            pixels_BCHW = cut(image, pictures, size, self.cnn.conv1.weight.dtype)
            found.append(self._run(pixels_BCHW, boxes_N4.index_select(0, mine_N), own.sample_N(device), removed_N))
        if len(found) == 1:
            return found[0]
        back_N = torch.from_numpy(np.argsort(np.concatenate(rows), kind="stable")).to(device, non_blocking=True)
        return torch.cat(found).index_select(0, back_N)

    def _run(self, pixels_BCHW: Tensor, boxes_N4: Tensor, sample_N: Tensor, removed_N: Tensor | None) -> Tensor:
        """Features of the boxes of pictures of one size."""
        from torchvision.ops import roi_align  # takes a second to import

        if self.mask_pixels and removed_N is not None:
            pixels_BCHW = erase(pixels_BCHW, boxes_N4, sample_N, removed_N)
        map_BCHW = self.cnn(pixels_BCHW, last=3)
        boxes_N5 = torch.cat([sample_N[:, None].float(), boxes_N4], dim=1)
        cells = roi_align(map_BCHW.float(), boxes_N5, self.cells, spatial_scale=1 / STRIDE, sampling_ratio=self.samples, aligned=False)
        features_NF: Tensor = self.cnn(cells.to(map_BCHW.dtype), first=4).mean((2, 3))
        return features_NF
