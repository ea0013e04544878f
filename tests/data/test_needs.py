"""What a model and its objectives need of the sources of a run, before the first step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mmpretrain.data import needs
from mmpretrain.data.errors import DataError
from mmpretrain.data.visual import Shown
from mmpretrain.types import Spec

CODES = Spec(8, ("causal",), 9, codes=16, text_pads=6)
PATCHES = Spec(8, ("fused",), 9, patch_size=4, masks_patches=True)


def part(show: str, reads: str = "pairs", name: str = "") -> Any:
    shown = Shown(show)
    units = SimpleNamespace(shown=shown, reads=reads, reads_image=reads != "texts" and shown.has_image)
    units.reads_codes = reads != "texts" and shown.has_codes
    return SimpleNamespace(name=name, units=units)


def objectives(sources: tuple[str, ...] | None = None) -> dict[str, Any]:
    return {"itm": SimpleNamespace(sources=None), "mim": SimpleNamespace(sources=sources, predicts="codes")}


def test_codes_that_are_predicted_are_shown() -> None:
    both, image = part("image+codes", name="a"), part("image", name="b")
    needs.check_codes(PATCHES, objectives(), [both])
    needs.check_codes(PATCHES, objectives(("a",)), [both, image])
    needs.check_codes(CODES, objectives(), [part("codes")])
    needs.check_codes(PATCHES, {"itm": SimpleNamespace(sources=None)}, [image])
    for spec, parts, message in (
        (PATCHES, [both, image], r"the source 'b' shows image; set data\.show=image\+codes \(shards of .* --keep-images\), or name"),
        (PATCHES, [part("codes")], r"data\.train shows codes; set data\.show=image\+codes"),
        (PATCHES, [both, part("image+codes", "texts", "c")], "the source 'c' shows texts alone"),
        (CODES, [part("image")], r"data\.train shows image; set data\.show=codes \(shards of mmpretrain data tokens\)"),
    ):
        with pytest.raises(DataError, match=f"^objective 'mim' predicts codes of pictures, {message}"):
            needs.check_codes(spec, objectives(), parts)


def test_the_longest_text_has_its_positions() -> None:
    for spec, parts, most in ((CODES, [part("codes")], 6), (PATCHES, [part("image")], 40), (None, [part("image")], 40)):
        needs.check_texts(spec, parts, most)
    needs.check_texts(CODES, [part("codes", "images")], 7)
    with pytest.raises(DataError, match=r"^data\.max_tokens=7 is above text_positions=6 of model\.system; set data\.max_tokens to 6"):
        needs.check_texts(CODES, [part("codes", "images"), part("codes")], 7)
