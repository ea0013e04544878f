"""What the page of ``mmpretrain demo`` shows of a checkpoint: which tabs, and the function of each, from plain inputs to plain outputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmpretrain.cli.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from mmpretrain.evaluate.pretrained import Pretrained
    from mmpretrain.generate.generator import Generator
    from mmpretrain.objectives.mlm import MLM

CAPTIONS = 256  # of one picture at a time
PICTURES = 64  # of one prompt at a time
GUESSES = 5
MATCH, WORDS, GENERATE, RECONSTRUCT = "Match", "Masked words", "Generate", "Reconstruct"


class Demo(NamedTuple):
    """A page without its looks."""

    source: str  # of the checkpoint
    tabs: dict[str, Callable[..., Any]]  # name -> match, masked_words, generate or reconstruct, all but what the user gives filled in
    unit: str = ""  # of the scores of Match and Generate


def open_demo(checkpoint: str | Path, dvae: str | Path | None = None, rerank: str | Path | None = None, device: str = "cpu") -> Demo:
    """The tabs of a checkpoint, or of the folder of a run, by the kind of its model.

    Args:
        checkpoint: as ``mmpretrain.load`` takes it.
        dvae: of a transformer over image codes: the autoencoder that its codes are of.
        rerank: of such a transformer: a dual encoder that orders the pictures; None: none.
        device: where the models go.

    Raises:
        UserError: an option that is missing, or that this checkpoint has no use for; a model that a plain picture tells nothing.
        ValueError: see ``mmpretrain.load`` and ``mmpretrain.Generator.load``.
    """
    import mmpretrain

    found = mmpretrain.load(checkpoint, device=device)
    if "causal" in found.model.spec.kinds:
        if dvae is None:
            raise UserError(f"{checkpoint}: draws image codes, which its autoencoder turns into pictures: name the run of that with --dvae")
        generator = mmpretrain.Generator.load(checkpoint, dvae, rerank, device=device)
        return Demo(generator.dalle.source, {GENERATE: partial(generate, generator)}, "" if rerank is None else "cosine")
    if unused := ", ".join(name for name, given in (("--dvae", dvae), ("--rerank", rerank)) if given is not None):
        raise UserError(f"{checkpoint}: draws no pictures (dalle.yaml does), so it has no use for {unused}")
    return Demo(found.source, tabs_of(found), "cosine" if found.dual else "probability")


def tabs_of(pretrained: Pretrained) -> dict[str, Callable[..., Any]]:
    """The tabs of a model that draws no pictures, by their names.

    Raises:
        UserError: it needs more than a plain picture, or has nothing to show of one.
    """
    shown = pretrained.shown
    if shown.has_regions or not shown.has_image:
        more = "regions" if shown.has_regions else "image codes"
        raise UserError(f"{pretrained.named}: this model reads {more}, which a plain picture has none of; see mmpretrain evaluate --help")
    if pretrained.kind == "coded":
        return {RECONSTRUCT: partial(reconstruct, pretrained)}
    found: dict[str, Callable[..., Any]] = {}
    if pretrained.tokenizer is not None and pretrained.can_match():
        found[MATCH] = partial(match, pretrained)
    if pretrained.tokenizer is not None and _mlm(pretrained) is not None:
        found[WORDS] = partial(masked_words, pretrained)
    if not found:
        raise UserError(f"{pretrained.named}: neither scores captions nor predicts masked words nor makes pictures: nothing to show")
    return found


def match(pretrained: Pretrained, image: Image.Image | None, captions: str) -> list[tuple[str, float]]:
    """Captions with their scores, best first, equal ones as they were given: cosines of a dual encoder, probabilities of matching of a
    fusion model.

    Args:
        pretrained: reads pictures and texts, and scores pairs.
        image: whatever ``pretrained.see`` takes.
        captions: one a line; empty lines do not count.

    Raises:
        ValueError: there is no picture, or it cannot be read; no caption, or more than ``CAPTIONS``.
    """
    lines = [line.strip() for line in captions.splitlines() if line.strip()]
    if not lines or len(lines) > CAPTIONS:
        raise ValueError(f"write one caption a line, at least one and at most {CAPTIONS}")
    output = "score" if pretrained.dual else "probability"
    scores = pretrained.score([_given(image)], lines, mode="matrix", output=output)[0].tolist()
    return sorted(zip(lines, scores, strict=True), key=lambda pair: -pair[1])


def masked_words(pretrained: Pretrained, image: Image.Image | None, text: str) -> list[tuple[str, list[tuple[str, float]]]]:
    """Each token of a text with the best guesses for it and their probabilities, ``GUESSES`` of them. All tokens of its word are hidden
    for that, and no others.

    Args:
        pretrained: a fusion model with an objective ``MLM``.
        image: whatever ``pretrained.see`` takes.
        text: is cut where it is too long, as in training.

    Raises:
        ValueError: there is no picture, or it cannot be read; no word.
    """
    import torch

    from mmpretrain.nn.ragged import Layout
    from mmpretrain.objectives.mlm import MaskedTokens
    from mmpretrain.types import Batch

    visual = pretrained.see(_given(image))
    told, objective, vocabulary = pretrained.told(pretrained.tokenize(text.strip()), visual), _mlm(pretrained), pretrained.vocabulary
    segments = told.segments or (0,) * len(told.ids)
    words = sorted({word for word, segment in zip(told.words, segments, strict=True) if word >= 0 and segment == 0})
    if not words or objective is None or vocabulary is None or vocabulary.mask is None:
        raise ValueError("write a sentence, such as: a red cube left of a blue ball")
    plain = pretrained.text([told] * len(words))
    assert plain.words_BT is not None  # the collator gives them
    hidden_BT = plain.words_BT == torch.tensor(words, device=pretrained.device)[:, None]
    layout = Layout(plain.lengths)
    rows_R = layout.pack(hidden_BT).nonzero().squeeze(1)
    labels_R = layout.pack(plain.ids_BT).index_select(0, rows_R)
    batch = Batch(
        keys=("",) * len(words),
        draw_keys_B=torch.zeros(len(words), dtype=torch.int64, device=pretrained.device),
        text=plain._replace(ids_BT=plain.ids_BT.masked_fill(hidden_BT, vocabulary.mask)),
        targets={objective.name: MaskedTokens(rows_R, labels_R, hidden_BT.sum().float())},
        **pretrained.visuals([visual] * len(words)),
    )
    name, token = objective.name, pretrained.tokenizer.token
    guesses = pretrained.forward(batch, lambda states, objectives: objectives[name].predict(states, batch, k=GUESSES))
    return [
        (token(guess.label), [(token(number), chance) for number, chance in zip(guess.ids, guess.probabilities, strict=True)])
        for of_word in guesses
        for guess in of_word
    ]


def generate(generator: Generator, prompt: str, n: int, guidance: float, seed: int | None) -> list[tuple[Image.Image, float | None]]:
    """``n`` pictures of a prompt with their cosines, best first; without scores, in the order of drawing, where nothing re-ranks.

    Raises:
        ValueError: ``n`` is not from 1 to ``PICTURES``, there is no seed; see ``mmpretrain.Generator``.
    """
    from mmpretrain.generate.choosing import Sampling

    if not 1 <= n <= PICTURES:
        raise ValueError(f"the number of pictures must be from 1 to {PICTURES}")
    if seed is None:  # a field that was emptied
        raise ValueError("the seed must be a whole number, such as 0")
    (found,) = generator(prompt, int(n), Sampling(guidance=float(guidance), seed=int(seed)))
    scores = None if found.ranking is None else found.ranking.scores_N.tolist()
    return [(found.image(number), None if scores is None else scores[number]) for number in found.order]


def reconstruct(pretrained: Pretrained, image: Image.Image | None) -> tuple[Image.Image, Image.Image, float]:
    """A picture as the autoencoder reads it, what comes back from its codes, and the PSNR of the two in dB.

    Raises:
        ValueError: there is no picture, or it cannot be read.
    """
    from mmpretrain.evaluate.reconstruction import psnr, rebuild, squared_error
    from mmpretrain.generate.generator import as_bytes, image_of

    found = rebuild(pretrained, [pretrained.see(_given(image))])
    before, after = (image_of(as_bytes(pixels)[0]) for pixels in (found.pixels_BCHW, found.rebuilt_BCHW))
    return before, after, float(psnr(squared_error(found))[0])


def _given(image: Image.Image | None) -> Image.Image:
    if image is None:
        raise ValueError("choose a picture first")
    return image


def _mlm(pretrained: Pretrained) -> MLM | None:
    """The objective of masked words of a fusion model, if it has one that masks with a token."""
    from mmpretrain.objectives.mlm import MLM

    if pretrained.kind != "fused" or pretrained.vocabulary is None or pretrained.vocabulary.mask is None:
        return None
    return next((one for one in pretrained.objectives.values() if isinstance(one, MLM)), None)
