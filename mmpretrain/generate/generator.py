"""``Generator``: captions to pictures, by a transformer over codes, the autoencoder that the codes are of, and, for the order, a CLIP."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from mmpretrain.data.codes_info import CodesInfo
from mmpretrain.data.image import ImageTransform
from mmpretrain.evaluate.inputs import ImageLike, picture_of
from mmpretrain.evaluate.loading import load
from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.generate import checks
from mmpretrain.generate.choosing import Sampling, sample_key
from mmpretrain.generate.rerank import ClipScorer, Ranking, Scorer, rerank
from mmpretrain.generate.sampling import Progress, Request, sample
from mmpretrain.nn.dvae import unit_pixels
from mmpretrain.types import Text

DECODED = 1 << 22  # pixels that the decoder makes at a time
DEFAULT = Sampling()
_LOG = logging.getLogger("mmpretrain")


class Generated(NamedTuple):
    """The pictures of one prompt, in the order in which they were drawn."""

    prompt: str
    codes_Nhw: Tensor  # int64
    pixels_N3HW: Tensor  # uint8
    ranking: Ranking | None = None  # None: nothing scored them

    @property
    def order(self) -> list[int]:
        """Numbers of the pictures, best first; as they were drawn where nothing scored them."""
        return list(range(len(self.codes_Nhw))) if self.ranking is None else self.ranking.order_N.tolist()

    def image(self, number: int) -> Image.Image:
        """A picture by its number."""
        return image_of(self.pixels_N3HW[number])

    @property
    def images(self) -> list[Image.Image]:
        """All pictures, best first."""
        return [self.image(number) for number in self.order]


class Start(NamedTuple):
    """A picture of which the first rows of codes are kept."""

    image: ImageLike
    rows: int | None = None  # None: half of them


class Generator:
    """Pictures for captions.

    >>> generator = mmpretrain.Generator.load("runs/dalle", "runs/dvae", rerank="runs/clip")  # doctest: +SKIP
    >>> generator(["a red circle left of a blue square"], n=32)[0].images[0]  # the best one  # doctest: +SKIP

    Args:
        dalle: a left-to-right model of kind ``causal`` with an objective ``NextCode``.
        dvae: the autoencoder whose codes it was trained on.
        scorer: orders the pictures of a prompt; None: they stay as they were drawn.

    Raises:
        ValueError: a checkpoint of another kind; codes of another number, or of another autoencoder; a tokenizer that does not belong to
            the model.
    """

    def __init__(self, dalle: Pretrained, dvae: Pretrained, scorer: Scorer | None = None) -> None:
        self.dalle, self.dvae, self.scorer = dalle, dvae, scorer
        self.head = checks.head_of(dalle)
        self.info: CodesInfo | None = checks.same_codes(dalle, dvae)
        checks.same_tokenizer(dalle)
        self.grid: tuple[int, int] = dalle.model.spec.code_grid
        self.codes: int = dalle.model.spec.codes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a picture in pixels."""
        side = self.dvae.model.spec.patch_size or 1
        return self.grid[1] * side, self.grid[0] * side

    @classmethod
    def load(
        cls,
        dalle: str | Path,
        dvae: str | Path,
        rerank: str | Path | None = None,
        weights: str = "auto",
        device: str | torch.device = "cpu",
    ) -> Generator:
        """From checkpoints, or folders of runs, as ``mmpretrain.load`` takes them; of the run of an autoencoder whose best checkpoint did
        not make the codes, the last one if that did.

        Args:
            dalle, dvae: see the class.
            rerank: a dual encoder (CLIP), by whose cosines pictures are ordered; None: none.
            weights: of the transformer, "auto", "raw" or "ema"; the others are opened with "auto", as ``mmpretrain data tokens`` does.
            device: where the models go.

        Raises:
            ValueError: see the class and ``mmpretrain.load``; ``rerank`` names no dual encoder over pictures.
        """
        scorer = None if rerank is None else ClipScorer(load(rerank, device=device))
        opened = load(dalle, weights, device=device)
        return cls(opened, checks.maker(dvae, checks.codes_of(opened), device), scorer)

    def __call__(
        self,
        prompts: str | Sequence[str],
        n: int = 1,
        sampling: Sampling = DEFAULT,
        start: Start | None = None,
        batch: int = 32,
        progress: Progress | None = None,
    ) -> list[Generated]:
        """n pictures for each prompt.

        What is drawn depends on the seed, the prompt, how often the same prompt stood in the list before, the number of the picture and the
        options, not on the size of the batch or on the other prompts.

        Args:
            prompts: one or several captions.
            n: pictures of each.
            sampling: temperature, top-k, top-p, guidance and seed.
            start: a picture whose first rows of codes all pictures begin with.
            batch: pictures drawn at a time.
            progress: called with (codes drawn, codes to draw).

        Raises:
            ValueError: a prompt that is empty or too long, an option out of its range, a picture that cannot be read, rows out of range.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        prompts = checks.prompts(prompts, self.dalle, self.scorer)
        sampling = sampling.check(self.codes)
        if sampling.guided and checks.unguided(self.dalle):
            _LOG.warning(
                "guidance=%g: %s never saw an empty caption, which guidance leads away from; train with NextText(dropout=0.1)",
                sampling.guidance,
                self.dalle.named,
            )
        given_n = None if start is None else self.begin(start)
        codes_PNL = self._draw(prompts, n, sampling, given_n, batch, progress)
        found = []
        for prompt, codes_NL in zip(prompts, codes_PNL, strict=True):
            codes_Nhw = codes_NL.view(n, *self.grid)
            pixels_N3HW = self.decode(codes_Nhw)
            order = None if self.scorer is None else rerank(list(pixels_N3HW), prompt, self.scorer)
            found.append(Generated(prompt, codes_Nhw, pixels_N3HW, order))
        return found

    def _draw(
        self, prompts: list[str], n: int, sampling: Sampling, given_n: Tensor | None, batch: int, progress: Progress | None
    ) -> Tensor:
        """Codes of all pictures: int64 (prompts, n, codes of a picture)."""
        occurrences = occurrences_of(prompts)
        length, device, name = self.grid[0] * self.grid[1], self.dalle.device, self.head

        def keys(prompt: int, number: int) -> int:
            return sample_key(sampling.seed, prompts[prompt], occurrences[prompt], number)

        def run(model: Any, objectives: Mapping[str, Any]) -> Tensor:
            request = Request(self.texts(prompts), keys, len(prompts), n, length, given_n)
            return sample(model, objectives[name].logits_of, request, sampling, batch, device, progress)

        return self.dalle.run(run)

    def texts(self, prompts: Sequence[str]) -> Callable[[Sequence[int], bool], Text]:
        """See ``sampling.Request.texts``."""
        tokens = self.dalle.tokenize(list(prompts))

        def make(numbers: Sequence[int], with_empty: bool) -> Text:
            return and_empty(self.dalle.text([tokens[number] for number in numbers]), len(numbers) if with_empty else 0)

        return make

    def begin(self, start: Start) -> Tensor:
        """The codes of the first rows of a picture, in raster order: int64 (rows * columns,).

        Raises:
            ValueError: it cannot be read, or there are not so many rows.
        """
        rows = max(1, self.grid[0] // 2) if start.rows is None else start.rows
        if not 1 <= rows < self.grid[0]:
            raise ValueError(f"keep_rows={rows} must be between 1 and {self.grid[0] - 1}: a picture has {self.grid[0]} rows of codes")
        return self.encode([start.image])[0, :rows].flatten()

    def encode(self, images: Sequence[ImageLike]) -> Tensor:
        """Codes of pictures as the transformer was trained on them, in its grid: int64 (n, h, w).

        Raises:
            ValueError: one cannot be read, or comes out in another grid.
        """
        transform = self.dvae.image_transform
        if self.info is not None and self.info.transform:
            transform = ImageTransform.from_dict(dict(self.info.transform))
        pixels = unit_pixels(self.dvae.pixels([transform(picture_of(image)) for image in images]))

        def run(model: Any, _: Mapping[str, Any]) -> Tensor:
            return model.encode(pixels).cpu()

        ids_nhw = self.dvae.run(run)
        if tuple(ids_nhw.shape[1:]) != tuple(self.grid):
            found, wanted = (" x ".join(map(str, grid)) for grid in (ids_nhw.shape[1:], self.grid))
            raise ValueError(f"{self.dvae.named}: it makes a grid of {found} codes of a picture, {self.dalle.named} reads {wanted}")
        return ids_nhw

    def decode(self, codes_Nhw: Tensor) -> Tensor:
        """The pictures of codes: uint8 (N, 3, H, W)."""
        side = self.dvae.model.spec.patch_size or 1
        chunk = max(1, DECODED // max(1, side * side * codes_Nhw.shape[1] * codes_Nhw.shape[2]))

        def run(model: Any, _: Mapping[str, Any]) -> Tensor:
            return torch.cat([as_bytes(model.decode(part.to(self.dvae.device))) for part in codes_Nhw.split(chunk)])

        return self.dvae.run(run)


def occurrences_of(prompts: Sequence[str]) -> list[int]:
    """How often each prompt stood in the list before."""
    seen: Counter[str] = Counter()
    found = []
    for prompt in prompts:
        found.append(seen[prompt])
        seen[prompt] += 1
    return found


def and_empty(text: Text, n: int) -> Text:
    """Texts with n empty ones behind them: of these no token is read, and the model's paddings stand in all positions."""
    if n == 0:
        return text
    ids_BT = torch.cat([text.ids_BT, torch.zeros_like(text.ids_BT[:1]).expand(n, -1)])
    return Text(ids_BT, (*text.lengths, *(0,) * n))


def as_bytes(pixels_BCHW: Tensor) -> Tensor:
    """Pictures in 0 to 1 as uint8, on the CPU."""
    return (pixels_BCHW.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def image_of(pixels_3HW: Tensor) -> Image.Image:
    """A picture of uint8 as PIL has it."""
    return Image.fromarray(pixels_3HW.permute(1, 2, 0).contiguous().numpy())
