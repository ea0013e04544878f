"""The quality of generated pictures on the captions of a set: what they show of them, by a probe; how a CLIP finds that they fit; how near
they are to real pictures. Re-ranked, reconstructed and real pictures are measured alike and stand beside.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmpretrain.data.decode import decode_image
from mmpretrain.data.errors import BadSample
from mmpretrain.evaluate.claims import Claims, Prompt, prompt_of
from mmpretrain.evaluate.generation import Measured, Prompted, Reference, attributes, clip_features, clip_scores, distances, reference
from mmpretrain.evaluate.inception import Inception
from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.probe import Probe
from mmpretrain.evaluate.result import Result, Stamp
from mmpretrain.evaluate.samples import EvalSet, chosen
from mmpretrain.generate import checks
from mmpretrain.generate.choosing import Sampling
from mmpretrain.generate.generator import DEFAULT, Generator
from mmpretrain.generate.sampling import Progress
from mmpretrain.types import Sample

ENCODED = 64  # pictures that the autoencoder reads at a time
REAL = 2048  # real pictures of another set that distances are taken from, at most
_LOG = logging.getLogger("mmpretrain")


class Judges(NamedTuple):
    """By what pictures are measured; a measure without its judge is left out.

    Args:
        probe: sees coloured shapes, for data whose objects are annotated.
        clip: for CLIP scores, and for distances of its features.
        inception: for FID and KID.
        features: moments or features of real pictures by that Inception, from a file, in place of those of ``real``.
        real: real pictures that distances are taken from; None: those of the set itself, and no distance is given for these.
    """

    probe: Probe | None = None
    clip: Pretrained | None = None
    inception: Inception | None = None
    features: Reference | None = None
    real: EvalSet | None = None


class Task(NamedTuple):
    """What is generated.

    Args:
        n: pictures of each prompt.
        limit: at most so many prompts, evenly spread over the set.
        sampling: temperature, top-k, top-p, guidance and seed.
        batch: pictures drawn at a time.
        ceilings: whether reconstructed and real pictures are measured too; they are the same for every seed.
    """

    n: int = 8
    limit: int | None = None
    sampling: Sampling = DEFAULT
    batch: int = 64
    ceilings: bool = True


class Held(NamedTuple):
    """The prompts of a set with their real pictures."""

    prompts: tuple[Prompt, ...]
    real: tuple[Tensor, ...]  # uint8 (3, H, W)


def measure(
    generator: Generator,
    data: EvalSet,
    judges: Judges,
    task: Task = Task(),  # noqa: B008  (immutable)
    progress: Progress | None = None,
) -> list[Result]:
    """All measures for which there is a judge.

    Names are ``generation/<set>/<pictures>/<measure>``; pictures are ``generated`` (all that were drawn), ``reranked`` (of each prompt the
    best one, where the generator has a scorer), ``reconstructed`` (the real ones through the autoencoder) and ``real``. See
    ``evaluate.generation`` for the measures; chance is that of another prompt.

    Args:
        generator: makes the pictures.
        data: samples with one picture and a caption; with a probe, annotated objects and a caption that names all of them.
        judges: by what.
        task: of what.
        progress: called with (codes drawn, codes to draw).

    Raises:
        ValueError: no judge, no sample to prompt with, or what the generator and the judges refuse.
    """
    if judges.probe is None and judges.clip is None and judges.inception is None:
        raise ValueError("generation: there is nothing to measure by; give a probe, a CLIP or Inception weights")
    held = collect(generator, data, judges, task.limit)
    references = _references(judges, data, held)  # what cannot be compared is said before anything is drawn
    texts = [prompt.text for prompt in held.prompts]
    drawn = generator(texts, task.n, task.sampling, batch=task.batch, progress=progress)
    shown = {
        "generated": Prompted([one for found in drawn for one in found.pixels_N3HW], np.repeat(np.arange(len(drawn)), task.n).tolist())
    }
    each = range(len(drawn))
    if generator.scorer is not None:
        shown["reranked"] = Prompted([found.pixels_N3HW[found.order[0]] for found in drawn], each)
    if task.ceilings:
        shown["reconstructed"] = Prompted(reconstructed(generator, held.real), each)
        shown["real"] = Prompted(held.real, each)
    how = f"{len(texts)} captions, {task.n} pictures of each, {task.sampling.describe()}"
    results = []
    for name, prompted in shown.items():
        found = _measured(prompted, texts, [prompt.claims for prompt in held.prompts], judges)
        for one in references:
            if name != "real" or judges.real is not None or one is judges.features:  # not of pictures from themselves
                found |= distances(prompted.pictures, one)
        results += _results(f"generation/{data.name}/{name}", found, data, generator, how, judges, references)
    return results


def collect(generator: Generator, data: EvalSet, judges: Judges, limit: int | None) -> Held:
    """The captions to prompt with, and the pictures of their samples.

    Raises:
        ValueError: there is none.
    """
    fits = _fits(generator, judges)
    prompts, real = [], []
    for number, sample in enumerate(chosen(data, limit, _single)):
        if judges.probe is not None:
            prompt = prompt_of(number, sample, judges.probe.words, fits)
        else:
            caption = next((caption for caption in sample.captions if fits(caption)), None)
            prompt = None if caption is None else Prompt(number, caption, Claims.none())
        picture = None if prompt is None else _picture(sample)
        if prompt is not None and picture is not None:
            prompts.append(prompt)
            real.append(picture)
    if len(prompts) < 2:
        needs = " that names all objects, annotated with colour, shape and box" if judges.probe is not None else ""
        raise ValueError(f"{data.name}: fewer than two samples have a picture and a caption{needs} that fits the models")
    return Held(tuple(prompts), tuple(real))


def _fits(generator: Generator, judges: Judges) -> Callable[[str], bool]:
    """Whether a caption can be read whole by all models that read it, and the transformer knows a word of it."""
    models = [generator.dalle, getattr(generator.scorer, "pretrained", None), judges.clip]
    lengths = [checks.counter(model) for model in models if model is not None]
    return lambda caption: checks.has_word(caption, generator.dalle) and all(length(caption) <= most for length, most in lengths)


def reconstructed(generator: Generator, pictures: Sequence[Tensor]) -> list[Tensor]:
    """Pictures through the codes and back, uint8."""
    parts = [pictures[start : start + ENCODED] for start in range(0, len(pictures), ENCODED)]
    return [one for part in parts for one in generator.decode(generator.encode(list(part)))]


def _references(judges: Judges, data: EvalSet, held: Held) -> list[Reference]:
    real, source = held.real, data.name
    if judges.real is not None:
        source = f"{judges.real.name}@{judges.real.fingerprint}"
        real = tuple(picture for sample in chosen(judges.real, REAL, _single) if (picture := _picture(sample)) is not None)
    found = [] if judges.clip is None else [reference("clip", clip_features(judges.clip), real, source)]
    if judges.features is not None:
        found.append(judges.features)
    elif judges.inception is not None:
        found.append(reference("inception", judges.inception.features, real, source))
    return found


def _single(sample: Sample) -> bool:
    return len(sample.images) == 1


def _picture(sample: Sample) -> Tensor | None:
    """uint8 (3, H, W); None, with a warning, where it cannot be decoded."""
    try:
        return torch.from_numpy(np.array(decode_image(sample.images[0]))).permute(2, 0, 1)
    except BadSample as error:
        _LOG.warning("left out of the evaluation: sample %s: %s", sample.key, error)
        return None


def _measured(prompted: Prompted, texts: Sequence[str], claims: Sequence[Claims], judges: Judges) -> dict[str, Measured]:
    found: dict[str, Measured] = {}
    if judges.probe is not None:
        found |= attributes(judges.probe(prompted.pictures), prompted.owner, claims)
    if judges.clip is not None:
        found |= clip_scores(judges.clip, prompted, texts)
    return found


def _results(
    prefix: str,
    found: Mapping[str, Measured],
    data: EvalSet,
    generator: Generator,
    how: str,
    judges: Judges,
    references: Sequence[Reference],
) -> list[Result]:
    clip = "" if judges.clip is None else f"; CLIP {judges.clip.source}"
    if judges.clip is not None and getattr(generator.scorer, "pretrained", None) is judges.clip:
        clip += ", which re-ranks too"
    probe = "" if judges.probe is None else f"; probe of {judges.probe.source}"
    real = "".join(f"; {one.name} distances from {one.source}" for one in references)
    stamp = Stamp(f"{data.name}@{data.fingerprint}", how + probe + clip + real, generator.dalle.precision, 0, generator.dalle.weights)
    return [Result(f"{prefix}/{name}", one.value, one.chance, stamp._replace(count=one.terms)) for name, one in found.items()]
