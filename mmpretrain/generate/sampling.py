"""Codes of pictures, one after another, by a left-to-right model: prefilled once for each prompt, expanded to the wanted number, cached.

The model gives what :class:`Autoregressive` names, a head turns its states into logits of codes. Nothing here knows of files, tokenizers
or pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mmpretrain.generate.choosing import Sampling, choose, guided
from mmpretrain.types import Text

Progress = Callable[[int, int], None]  # (codes drawn, codes to draw)
Head = Callable[[Tensor], Tensor]  # states (B, D) -> logits of the next code (B, K)


class Cache(Protocol):
    """Keys and values of the tokens so far."""

    def expand(self, n: int) -> Cache:
        """Every sample n times, one after another; the given cache stays as it is."""
        ...


class Autoregressive(Protocol):
    """What a model over [text; codes] gives for sampling."""

    def prefill(self, text: Text, codes_Bn: Tensor | None = None) -> tuple[Any, Tensor]:
        """Run texts, and n given codes of each: (cache, states (B, D) that predict the next code)."""
        ...

    def advance(self, cache: Any, codes_B: Tensor) -> Tensor:
        """Append one code of each sample; the states (B, D) that predict the next one."""
        ...


class Piece(NamedTuple):
    """What is drawn at one time: samples ``first`` to ``first + count - 1`` of each of some prompts."""

    prompts: tuple[int, ...]
    first: int
    count: int  # type: ignore[assignment]  # of a tuple's methods


def plan(prompts: int, n: int, batch: int) -> Iterator[Piece]:
    """n samples of each prompt in pieces of at most ``batch`` pictures, prompt by prompt.

    Raises:
        ValueError: nothing to draw, or a batch of none.
    """
    if prompts < 1 or n < 1 or batch < 1:
        raise ValueError(f"generate: prompts={prompts}, n={n} and batch={batch} must be at least 1")
    if n >= batch:
        for prompt in range(prompts):
            yield from (Piece((prompt,), first, min(batch, n - first)) for first in range(0, n, batch))
        return
    group = batch // n
    for start in range(0, prompts, group):
        yield Piece(tuple(range(start, min(start + group, prompts))), 0, n)


class Request(NamedTuple):
    """What is to be drawn.

    Args:
        texts: gives the ``Text`` of the prompts of these numbers, and with True the same number of empty captions after them.
        keys: gives the key of sample j of prompt p; see ``choosing.sample_key``.
        prompts: how many there are.
        n: samples of each.
        length: codes of a picture.
        given_n: codes that every picture begins with, int64, or None.
    """

    texts: Callable[[Sequence[int], bool], Text]
    keys: Callable[[int, int], int]
    prompts: int
    n: int
    length: int
    given_n: Tensor | None = None


def sample(
    model: Autoregressive,
    head: Head,
    request: Request,
    sampling: Sampling,
    batch: int = 32,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Tensor:
    """Codes of all pictures: int64 (prompts, n, length), on the CPU.

    A prompt is prefilled once for all of its samples. With guidance the empty captions stand in the same batch behind the prompts. The
    noise of a code is a function of the key of its sample and its position alone; what is left of the size of the batch is the rounding of
    the model's arithmetic.

    Args:
        model, head: in evaluation mode, without gradients.
        request: what.
        sampling: how.
        batch: pictures drawn at a time; with guidance the model sees twice as many.
        device: where the model is.
        progress: called with (codes drawn, codes to draw) after every position.

    Raises:
        ValueError: nothing to draw, or logits that are not finite.
    """
    kept = 0 if request.given_n is None else len(request.given_n)
    if not 0 <= kept < request.length:
        raise ValueError(f"generate: {kept} of {request.length} codes are given, which leaves none to draw")
    found_PNL = torch.empty(request.prompts, request.n, request.length, dtype=torch.int64)
    if request.given_n is not None:
        found_PNL[..., :kept] = request.given_n.cpu()
    done, total = 0, request.prompts * request.n * (request.length - kept)
    held: tuple[tuple[int, ...], Any, Tensor] | None = None
    for piece in plan(request.prompts, request.n, batch):
        if held is None or held[0] != piece.prompts:
            held = (piece.prompts, *_prefill(model, request, piece.prompts, sampling.guided, device))
        cache, state_BD = held[1].expand(piece.count), held[2].repeat_interleave(piece.count, dim=0)
        keys = [request.keys(p, piece.first + j) for p in piece.prompts for j in range(piece.count)]
        keys_B = torch.tensor(keys, dtype=torch.int64, device=device)
        sound = torch.ones((), dtype=torch.bool, device=device)
        rows_BL = torch.empty(len(keys), request.length - kept, dtype=torch.int64, device=device)
        for position in range(kept, request.length):
            logits_BK = _logits(head, state_BD, sampling)
            sound = sound & logits_BK.amax(-1).isfinite().all()  # asked once for the piece: a question makes the device wait
            codes_B = choose(logits_BK, keys_B, position, sampling)
            rows_BL[:, position - kept] = codes_B
            done += len(keys)
            if position + 1 < request.length:
                state_BD = model.advance(cache, codes_B.repeat(2) if sampling.guided else codes_B)
            if progress is not None:
                progress(done, total)
        if not bool(sound):
            raise ValueError("generate: the model gives logits that are not finite; the checkpoint is damaged or its training diverged")
        last = piece.first + piece.count
        found_PNL[list(piece.prompts), piece.first : last, kept:] = rows_BL.cpu().view(len(piece.prompts), piece.count, -1)
    return found_PNL


def _prefill(model: Autoregressive, request: Request, prompts: Sequence[int], guided: bool, device: Any) -> tuple[Any, Tensor]:
    text = request.texts(prompts, guided)
    text = text._replace(ids_BT=text.ids_BT.to(device))
    rows = text.ids_BT.shape[0]
    given_Bn = None if request.given_n is None else request.given_n.to(device).expand(rows, -1)
    return model.prefill(text, given_Bn)


def _logits(head: Head, state_BD: Tensor, sampling: Sampling) -> Tensor:
    logits_BK = head(state_BD).double()
    if not sampling.guided:
        return logits_BK
    cond_BK, empty_BK = logits_BK.chunk(2)
    return guided(cond_BK, empty_BK, sampling.guidance)
