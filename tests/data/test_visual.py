"""Regions in the data path: which are shown, what a batch holds, what is read, what is counted, what is said."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers.batches import data
from helpers.plans import ahead, batches, feed
from helpers.regions import count_of, made, of_sample, write_regions
from helpers.shards import write_shards, write_statements

from mmpretrain.data.buckets import Buckets, Ruler
from mmpretrain.data.collate import Collator
from mmpretrain.data.cursor import Cursor
from mmpretrain.data.draws import keys
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.feed import Part
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.mixture import TrainSource
from mmpretrain.data.reader import open_reader
from mmpretrain.data.text import TextOptions
from mmpretrain.data.training_set import specs_of
from mmpretrain.data.units import Units
from mmpretrain.data.visual import RegionOptions, Shown
from mmpretrain.evaluate.inputs import picture_of
from mmpretrain.evaluate.seeing import Seeing
from mmpretrain.types import Tokens, Visual

COLLATOR = Collator(0, (0.5,) * 3, (0.5,) * 3)
VILT = ImageTransform("vilt", 16, 8)


def shown(options: RegionOptions, scores: list[float] | None, **arrays: Any) -> list[int]:
    """Which of three regions, or of as many as there are scores, are shown, by their number."""
    given = None if scores is None else np.asarray(scores, dtype=np.float32)
    found = made(3 if scores is None else len(scores))._replace(scores=given, **arrays)
    numbered = found._replace(features=np.arange(len(found.boxes), dtype=np.float16)[:, None])
    return options.choose(numbered).features[:, 0].astype(int).tolist()


def test_the_rules_of_the_systems():
    scores = [0.3, 0.9, 0.1, 0.2, 0.5]
    assert shown(RegionOptions(), scores) == [0, 1, 2, 3, 4]
    uniter = RegionOptions(min_score=0.2, least=2, most=4)
    assert shown(uniter, scores) == [0, 1, 4]  # above 0.2, not at it
    assert shown(uniter, [0.1, 0.0, 0.15, 0.05]) == [0, 2]  # the two best, whatever their score, as they lie there
    assert shown(uniter, [0.5, 0.6, 0.7, 0.8, 0.9]) == [0, 1, 2, 3]
    unicoder = RegionOptions(order="score", least=3, most=3)
    assert shown(unicoder, scores) == [1, 4, 0] and shown(unicoder, [0.1, 0.2]) == [1, 0]
    assert shown(RegionOptions(order="score"), [0.5, 0.9, 0.5, 0.9]) == [1, 3, 0, 2]  # ties as they lie there
    assert shown(RegionOptions(most=2), scores) == [0, 1]  # LXMERT: the first 36
    assert shown(RegionOptions(order="score", min_score=0.99, least=1), scores) == [1]


def test_scores_are_the_best_class_where_there_are_none():
    probabilities = np.asarray([[0.2, 0.8], [0.9, 0.1], [0.5, 0.5]], dtype=np.float16)
    assert shown(RegionOptions(order="score"), None, class_probs=probabilities) == [1, 0, 2]
    with pytest.raises(DataError, match=r"neither scores nor class_probs; set data\.regions\.order=stored"):
        shown(RegionOptions(order="score"), None, class_probs=None)


def test_every_array_is_taken_alike():
    whole = made(5)
    found = RegionOptions(order="score", most=3).choose(whole)
    rows = np.argsort(-whole.scores)[:3]
    for name, array in whole._asdict().items():
        wanted = array if name in ("image_size", "global_feature") else array[rows]
        np.testing.assert_array_equal(getattr(found, name), wanted)


def test_options_out_of_range():
    for wrong in ({"most": 0}, {"least": 0}, {"least": 5, "most": 4}, {"min_score": 1.0}, {"min_score": -0.1}, {"order": "size"}):
        with pytest.raises(DataError, match=r"data\.regions"):
            RegionOptions(**wrong)


def test_collated_regions_are_packed():
    samples = [made(n, seed=n) for n in (3, 1, 4)]
    found = COLLATOR.regions(samples)
    assert found.lengths == (3, 1, 4) and found.sizes == ((48, 64),) * 3
    types = {name: x.dtype for name, x in found._asdict().items() if isinstance(x, torch.Tensor)}
    assert {name for name, kind in types.items() if kind == torch.int64} == {"classes_N", "attributes_N"}
    assert {kind for name, kind in types.items() if name not in ("classes_N", "attributes_N")} == {torch.float32} and len(types) == 8
    for place, (start, one) in enumerate(zip((0, 3, 4), samples)):
        part = slice(start, start + len(one.boxes))
        np.testing.assert_array_equal(found.features_NF[part].numpy(), one.features.astype(np.float32))
        np.testing.assert_array_equal(found.boxes_N4[part].numpy(), one.boxes)
        np.testing.assert_array_equal(found.classes_N[part].numpy(), one.classes)
        np.testing.assert_array_equal(found.attribute_probs_NA[part].numpy(), one.attribute_probs.astype(np.float32))
        np.testing.assert_array_equal(found.global_BF[place].numpy(), one.global_feature.astype(np.float32))
    bare = COLLATOR.regions([one._replace(scores=None, global_feature=None) for one in samples])
    assert bare.scores_N is None and bare.global_BF is None and bare.classes_N is not None


def test_arrays_that_do_not_fit_together():
    one, other = made(3), made(2, seed=1)
    with pytest.raises(DataError, match="1 of 2 samples of a batch have scores, the others do not; make the regions of all shards by one"):
        COLLATOR.regions([one, other._replace(scores=None)])
    with pytest.raises(DataError, match="features of a batch have 5 and 6 values"):
        COLLATOR.regions([one, made(2, 6)])
    with pytest.raises(DataError, match="class_probs of a batch have 2 and 3 values"):
        COLLATOR.regions([one, other._replace(class_probs=other.class_probs[:, :2])])
    with pytest.raises(DataError, match="sample 1 of a batch has none"):
        COLLATOR.regions([one, made(0)])


def test_segments_of_a_batch():
    single, pair = Tokens((2, 7, 3), (-1, 0, -1), "a"), Tokens((2, 7, 3, 8, 3), (-1, 0, -1, 1, -1), "a", (0, 0, 0, 1, 1))
    assert COLLATOR.text([single, single]).segments_BT is None
    assert COLLATOR.text([single, pair]).segments_BT.tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]


class Others(NamedTuple):
    """Keeps what two other samples show, and a pair of texts."""

    def prepare(self, example, draw) -> Any:
        return [draw.other_visual(k) for k in range(2)], draw.tokenize("a red circle", "number 7")

    def collate(self, values, collate) -> Any:
        return values


def test_a_sample_without_a_picture_is_enough(tmp_path):
    folder = write_regions(tmp_path, image=False)
    made_ = data(folder, show="regions", preparers={"others": Others()})
    assert made_.region_width == 5
    for (batch,) in made_.train_dataloader():
        assert batch.image is None and batch.text is not None
        ends = np.cumsum(batch.regions.lengths)
        for i, key in enumerate(batch.keys):
            number = int(key[1:])
            assert batch.regions.lengths[i] == count_of(number)
            wanted = of_sample(number).features.astype(np.float32)
            np.testing.assert_array_equal(batch.regions.features_NF[ends[i] - len(wanted) : ends[i]].numpy(), wanted)
        for others, pair in batch.targets["others"]:
            assert pair.segments[0] == 0 and pair.segments[-1] == 1
            for key, visual in others:
                assert visual.image is None
                np.testing.assert_array_equal(visual.regions.boxes, of_sample(int(key[1:])).boxes)


def test_both_are_of_one_sample_and_orders_do_not_change(tmp_path):
    folder = write_regions(tmp_path)
    found = {}
    for show in ("image", "regions", "both"):
        loader = data(folder, show=show, image=VILT, preparers={"others": Others()}, batch_size=4).train_dataloader()
        found[show] = [item[0] for item in loader]
    for image, regions, both in zip(*found.values(), strict=True):
        assert image.keys == regions.keys == both.keys and torch.equal(image.draw_keys_B, both.draw_keys_B)
        assert torch.equal(image.image.pixels_BCHW, both.image.pixels_BCHW) and torch.equal(image.text.ids_BT, regions.text.ids_BT)
        assert image.regions is None and regions.image is None
        assert torch.equal(regions.regions.features_NF, both.regions.features_NF)
        for (a, _), (b, _), (c, _) in zip(*(one.targets["others"] for one in (image, regions, both)), strict=True):
            for (key, only), (same, bare), (again, full) in zip(a, b, c, strict=True):
                assert key == same == again and torch.equal(only.image, full.image)
                assert isinstance(bare, Visual) and np.array_equal(bare.regions.features, full.regions.features)
                assert np.array_equal(full.regions.features, of_sample(int(key[1:])).features)


def test_no_picture_is_read(tmp_path, monkeypatch):
    folder = write_regions(tmp_path, (12,))
    monkeypatch.setattr(ImageTransform, "read", lambda *_: pytest.fail("a picture is decoded"))
    (batch,) = next(iter(data(folder, show="regions", preparers={}).train_dataloader()))
    assert batch.regions is not None
    reader = open_reader(str(folder))
    sample = reader.read_at(0, 3, images=False, regions=True)
    assert sample.images == (b"",) and sample.regions is not None
    assert reader.read_at(0, 3, images=True, regions=False).regions is None and reader.read_at(0, 3).regions is not None
    assert reader.read_at(0, 3, images=False).regions is None


def test_what_is_missing_is_said(tmp_path):
    bare = write_shards(tmp_path / "bare", (12,))
    with pytest.raises(
        DataError, match=r"no sample of .*bare has regions and captions; none of them has KEY.regions.npz: mmpretrain data reg"
    ):
        data(bare, show="regions")
    some = write_regions(tmp_path / "some", (12,), without=(2, 7))
    found = data(some, show="regions", batch_size=5, preparers={})
    told = found.set.tell(found.feed)
    assert "10 samples, 2 steps" in told and "2 samples lack regions or captions and are left out" in told
    assert {key for (b,) in found.train_dataloader() for key in b.keys}.isdisjoint({"k00002", "k00007"})
    with pytest.raises(DataError, match="has a picture, regions and captions; none of them"):
        data(bare, show="both", image=VILT)
    with pytest.raises(DataError, match=r"data.show='boxes'; take one of image, regions, both"):
        data(some, show="boxes")
    with pytest.raises(DataError, match=r"data.show=both: data.image.mode=clip moves pictures away"):
        data(some, show="both")
    with pytest.raises(DataError, match=r"key 'k0000\d': its regions have neither scores"):
        next(
            iter(
                data(
                    write_regions(tmp_path / "u", (12,), drop=("scores", "class_probs")),
                    show="regions",
                    regions=RegionOptions(order="score"),
                    preparers={},
                ).train_dataloader()
            )
        )


def test_one_width_for_all(tmp_path):
    write_regions(tmp_path / "a", (12,))
    write_regions(tmp_path / "b", (12,), width=6)
    mixed = data(f"{tmp_path}/a::{tmp_path}/b", show="regions", preparers={})
    with pytest.raises(DataError, match=r"b/00000.tar key 'k0000\d': its regions have 6 values, others have 5; make the regions of all"):
        list(mixed.train_dataloader())
    train = {name: TrainSource(str(tmp_path / name), show="regions") for name in "ab"}
    with pytest.raises(DataError, match=r"b/00000.tar key 'k\d+': its regions have 6 values, those of .*a/00000.tar key 'k\d+' have 5"):
        of_mixture(train)


def of_mixture(train: dict[str, TrainSource], **options: Any):
    from mmpretrain.data.module import ShardData

    made_ = ShardData(train, batch_size=4, text=TextOptions(vocab_size=300), image=VILT, max_tokens=12, workers=0, seed=5, **options)
    made_.setup("fit")
    return made_


def test_a_source_of_texts_beside_region_pairs(tmp_path):
    pairs, books = write_regions(tmp_path / "pairs", (12,), image=False), write_shards(tmp_path / "books", (12,))
    train = {"pairs": TrainSource(str(pairs)), "books": TrainSource(str(books), reads="texts")}
    with pytest.raises(DataError, match=r"data\.mix=sample would put pairs with regions of 'pairs' and texts of 'books'"):
        of_mixture(train, show="regions")
    mixed = of_mixture(train, show="regions", mix="batch")
    found = [item[0] for item in mixed.train_dataloader()]
    assert {(b.source, b.regions is None, b.image is None) for b in found} == {("pairs", False, True), ("books", True, True)}
    own = {"pairs": TrainSource(str(pairs), show="regions", regions=RegionOptions(most=2)), "photos": TrainSource(str(books))}
    shown_ = {b.source: b for (b,) in of_mixture(own, mix="batch").train_dataloader()}
    assert max(shown_["pairs"].regions.lengths) == 2 and shown_["pairs"].image is None
    assert shown_["photos"].image is not None and shown_["photos"].regions is None
    saved = specs_of({"a": {"sources": "x", "show": "regions", "regions": {"most": 7}}})
    assert saved["a"].regions == RegionOptions(most=7)
    with pytest.raises(DataError, match="show 'boxes' of 'x'"):
        TrainSource("x", show="boxes")


def test_a_position_knows_what_was_shown(tmp_path):
    folder = write_regions(tmp_path, (12,), without=(3,))
    plain, regions = data(folder, batch_size=2, preparers={}), data(folder, batch_size=2, show="regions", preparers={})
    assert "show" not in plain.identity() and regions.identity()["show"] == "regions"
    with pytest.raises(DataError, match=r"data\.show=image, not regions"):
        regions.load_state_dict(plain.state_dict())
    with pytest.raises(DataError, match=r"data\.show=regions, not image"):
        plain.load_state_dict(regions.state_dict())


def units(folder, show: str, **options: Any) -> Units:
    return Units(open_reader(str(folder)), shown=Shown(show, RegionOptions(**options)))


def test_token_batches_count_text_and_regions(tmp_path):
    folder = write_regions(tmp_path, (40,))
    zero = np.zeros(40, dtype=np.int64)
    numbers = np.asarray([count_of(n) for n in range(40)])

    def cost(show: str, by: tuple[str, ...] = Buckets().by, **options: Any) -> tuple[list[int], Ruler]:
        ruler = Ruler(Buckets(by=by), VILT, 40, [units(folder, show, **options)])
        return ruler.measure(zero, zero, np.arange(40), keys(0, 0, np.arange(40)))[0].cost_P.tolist(), ruler

    text = np.asarray(cost("regions", ("text",))[0])
    image = np.asarray(cost("image", ("image",))[0])
    assert cost("regions")[0] == (text + numbers).tolist() and cost("image")[0] == (text + image).tolist()
    assert cost("both")[0] == (text + image + numbers).tolist()
    assert cost("regions", most=3)[0] == (text + np.minimum(numbers, 3)).tolist()
    assert cost("regions")[1].longest == 40 + 5 and cost("regions", most=3)[1].longest == 40 + 3
    assert "regions" not in cost("image")[1].identity and "3 regions" in cost("regions", most=3)[1].identity
    made_ = feed([Part("", units(folder, "regions"))], 8, buckets=Buckets(window=2, tokens=120, multiple=1))
    for batch in batches(made_, ahead(Cursor(made_, {}))):
        _, source, shard, unit, _ = np.asarray(batch).T
        costs = made_.ruler.measure(source, shard, unit, keys(3, 0, np.arange(len(unit))))[0].cost_P
        assert costs.max() * len(costs) <= 150  # the caption that is drawn here may be longer than the one that was counted


def test_statements_and_regions_of_pictures_alone(tmp_path):
    with pytest.raises(DataError, match="has regions and statements"):
        data(write_statements(tmp_path / "s"), show="regions", text_from="statements")
    folder = write_regions(tmp_path / "r", (12,))
    only = of_mixture({"boxes": TrainSource(str(folder), reads="images", show="regions")})
    (batch,) = next(iter(only.train_dataloader()))
    assert batch.text is None and batch.image is None and batch.regions is not None


@pytest.mark.parametrize("content,said", [(b"filepath,title", "not readable as JPEG, PNG, WEBP"), (b"", "0 bytes")])
def test_a_file_that_is_no_picture_is_named(content, said, tmp_path):
    (tmp_path / "pairs.csv").write_bytes(content)
    see, path = Seeing(VILT, Shown()), tmp_path / "pairs.csv"
    for given in (path, str(path)):
        for opens in (see, picture_of):
            with pytest.raises(BadSample, match=rf"^{path}: picture cannot be decoded \({said}\)$"):
                opens(given)
    with pytest.raises(BadSample, match=rf"^picture cannot be decoded \({said}\)$"):
        see(content)
    (tmp_path / "k.regions.npz").write_bytes(b"PK none")
    with pytest.raises(BadSample, match=rf"^{tmp_path}/k\.regions\.npz: "):
        Seeing(None, Shown("regions"))(tmp_path / "k.regions.npz")
