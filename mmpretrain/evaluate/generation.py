"""What generated pictures show of their captions, and how near they are to real ones.

Pictures are measured apart from how they were made: pixels and captions go in, numbers come out. The same numbers of real pictures and of
their reconstructions stand beside them as ceiling, those of permuted captions as chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from mmpretrain.evaluate.claims import Claims, Placed, Thing, holds, shown
from mmpretrain.evaluate.distances import Moments, checked, frechet, kernel_distance, moments
from mmpretrain.evaluate.pretrained import Pretrained

Features = Callable[[Sequence[Tensor]], np.ndarray]  # pictures uint8 (3, H, W) -> (n, D)
_BLOCK = 256  # pictures of a block of counts


class Measured(NamedTuple):
    """A number with its chance level, and how many terms it is a mean of."""

    value: float
    chance: float | None
    terms: int


class Prompted(NamedTuple):
    """Pictures with the prompts that they were made for.

    Picture i was made for prompt ``owner[i]``.
    """

    pictures: Sequence[Tensor]  # uint8 (3, H, W)
    owner: Sequence[int]


def attributes(found: Sequence[Sequence[Placed]], owner: Sequence[int], prompts: Sequence[Claims]) -> dict[str, Measured]:
    """Do pictures show what their captions name?

    Things count with colour and shape, and as often as they are named. Chance is the same over all pairs of a picture and the claims of
    another prompt.

    Args:
        found: the things that a probe sees in each picture.
        owner: the prompt of each picture.
        prompts: what each prompt claims.

    Returns:
        ``recall``: of the named things, how many are shown; ``precision``: of the shown things, how many are named; ``all_named``: share of
        pictures that show all named things; ``exact``: and nothing else; ``colour_recall``, ``shape_recall``: recall of colours and of
        shapes alone; ``count``: share of pictures with the right number of things; ``beside``: of the claims that a thing is left or right
        of another, how many hold; ``beside_if_shown``: of those whose two things are shown. What has no term is left out.
    """
    kinds = {
        "": lambda thing: thing,
        "colour_": lambda thing: thing[0],
        "shape_": lambda thing: thing[1],
    }
    made: dict[str, Measured] = {}
    for prefix, part in kinds.items():
        seen = [Counter(part(placed.thing) for placed in things) for things in found]
        named = [_merged(claims.things, part) for claims in prompts]
        made |= _overlaps(seen, named, owner, prefix)
    return made | _beside(found, owner, prompts)


def _merged(things: Mapping[Thing, int], part: Callable[[Thing], object]) -> Counter[object]:
    total: Counter[object] = Counter()
    for thing, number in things.items():
        total[part(thing)] += number
    return total


def _overlaps(seen: Sequence[Counter], named: Sequence[Counter], owner: Sequence[int], prefix: str) -> dict[str, Measured]:
    """Recall and the like of counted kinds, with chance over all pairs of a picture and another prompt."""
    names = sorted({kind for counter in (*seen, *named) for kind in counter}, key=str)
    seen_IC, named_PC = (np.array([[one[kind] for kind in names] for one in rows], dtype=np.int32) for rows in (seen, named))
    owner_I = np.asarray(owner)
    both, whole, same, alike = (np.zeros((len(seen), len(named))) for _ in range(4))
    for start in range(0, len(seen), _BLOCK):
        part = slice(start, start + _BLOCK)
        least_IPC = np.minimum(seen_IC[part, None], named_PC[None])
        both[part] = least_IPC.sum(2)
        whole[part] = (least_IPC == named_PC[None]).all(2)
        same[part] = (seen_IC[part, None] == named_PC[None]).all(2)
        alike[part] = seen_IC[part].sum(1)[:, None] == named_PC.sum(1)[None]
    seen_IP = np.broadcast_to(seen_IC.sum(1)[:, None], both.shape)
    named_IP = np.broadcast_to(named_PC.sum(1)[None], both.shape)
    ones = np.ones_like(both)
    terms = {f"{prefix}recall": (both, named_IP)}
    if not prefix:
        terms |= {"precision": (both, seen_IP), "all_named": (whole, ones), "exact": (same, ones), "count": (alike, ones)}
    found = {name: _ratio(above, below, owner_I) for name, (above, below) in terms.items()}
    return {name: one for name, one in found.items() if one is not None}


def _ratio(above_IP: np.ndarray, below_IP: np.ndarray, owner_I: np.ndarray) -> Measured | None:
    """Sum over sum, of pictures with their own prompt, and of pictures with every other one; None where the former has no term."""
    rows = np.arange(len(owner_I))
    own = below_IP[rows, owner_I].sum()
    if not own:
        return None
    other = below_IP.sum() - own
    rest = above_IP.sum() - above_IP[rows, owner_I].sum()
    return Measured(float(above_IP[rows, owner_I].sum() / own), float(rest / other) if other else None, int(own))


def _beside(found: Sequence[Sequence[Placed]], owner: Sequence[int], prompts: Sequence[Claims]) -> dict[str, Measured]:
    """Claims of left and right."""
    claims = [(number, claim) for number, prompt in enumerate(prompts) for claim in prompt.beside]
    own, other = [0, 0, 0], [0, 0, 0]  # claims, of which both things are shown, of which it holds
    for things, mine in zip(found, owner, strict=True):
        for number, claim in claims:
            both, counts = shown(claim, things), own if number == mine else other
            counts[0] += 1
            counts[1] += both
            counts[2] += both and holds(claim, things)
    made = {}
    if own[0]:
        made["beside"] = Measured(own[2] / own[0], other[2] / other[0] if other[0] else None, own[0])
    if own[1]:
        made["beside_if_shown"] = Measured(own[2] / own[1], other[2] / other[1] if other[1] else None, own[1])
    return made


def clip_scores(clip: Pretrained, prompted: Prompted, prompts: Sequence[str]) -> dict[str, Measured]:
    """How well a dual encoder finds that pictures fit their captions.

    Returns:
        ``clip_score``: the mean cosine (CLIPScore, arXiv 2104.08718, is 2.5 times that where it is positive), chance is the mean over other
        captions; ``clip_preferred``: share of pairs of a picture and another caption in which the own one has the higher cosine, a tie
        counts one half; chance 50 %. Captions that are the same text are not other captions.
    """
    text_PE = clip.encode_text(list(prompts)).double()
    image_IE = clip.encode_image(list(prompted.pictures)).double()
    cosine_IP = (image_IE @ text_PE.T).numpy()
    owner_I = np.asarray(prompted.owner)
    own_I = cosine_IP[np.arange(len(owner_I)), owner_I]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(prompts))}
    text_P = np.array([numbers[text] for text in prompts])
    other_IP = text_P[owner_I][:, None] != text_P[None]
    made = {"clip_score": Measured(float(own_I.mean()), float(cosine_IP[other_IP].mean()) if other_IP.any() else None, len(own_I))}
    if other_IP.any():
        won_IP = np.where(np.abs(own_I[:, None] - cosine_IP) <= 1e-6, 0.5, own_I[:, None] > cosine_IP)
        made["clip_preferred"] = Measured(float(won_IP[other_IP].mean()), 0.5, int(other_IP.sum()))
    return made


class Reference(NamedTuple):
    """Features of real pictures that others are compared with."""

    name: str  # of the features
    features: Features
    moments: Moments
    features_ND: np.ndarray | None = None  # None: only moments are known
    source: str = ""  # whose they are, for protocols


def reference(name: str, features: Features, real: Sequence[Tensor], source: str = "") -> Reference:
    """The features of real pictures.

    Raises:
        ValueError: there are fewer than two.
    """
    features_ND = checked(features(real))
    return Reference(name, features, moments(features_ND), features_ND, source)


def distances(pictures: Sequence[Tensor], real: Reference) -> dict[str, Measured]:
    """``frechet_<name>`` and, where the features themselves are known, ``kernel_<name>`` of pictures from real ones.

    Raises:
        ValueError: there are fewer than two pictures.
    """
    features_ND = checked(real.features(pictures))
    made = {f"frechet_{real.name}": Measured(frechet(moments(features_ND), real.moments), None, len(features_ND))}
    if real.features_ND is not None:
        made[f"kernel_{real.name}"] = Measured(kernel_distance(features_ND, real.features_ND), None, len(features_ND))
    return made


def clip_features(clip: Pretrained) -> Features:
    """Vectors of length 1 of a dual encoder's image tower."""
    return lambda pictures: clip.encode_image(list(pictures)).double().numpy()
