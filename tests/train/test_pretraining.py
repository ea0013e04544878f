"""The root: views, ties, materialisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from train.fakes import VOCABULARY, FakeMatch, FakeMLM, FakeModel, States, sample_batch

from mmpretrain.objectives.itm import ITM
from mmpretrain.objectives.mlm import MLM
from mmpretrain.objectives.sip import SIP
from mmpretrain.objectives.tags import TagContrast
from mmpretrain.train.pretraining import Pretraining, assert_tied, group_views, materialise, ties
from mmpretrain.train.tasks import tasks
from mmpretrain.types import Batch, RegionBatch


class Reader(FakeMatch):
    """Corrupts with what an earlier view predicts, as ELECTRA does."""

    seen: Any = None

    def corrupt(self, batch: Batch, outputs: Any) -> Batch:
        assert isinstance(outputs["main"], States) and not outputs["main"].tokens_BTD.requires_grad
        self.seen = outputs["main"].tokens_BTD
        return batch


class Counting(FakeModel):
    calls = 0

    def forward(self, batch: Batch, kind: str = "fused") -> States:
        type(self).calls += 1
        return super().forward(batch, kind)


def root(**objectives: Any) -> Pretraining:
    torch.manual_seed(0)
    found = Pretraining(Counting(), objectives)
    found.bind(VOCABULARY)
    Counting.calls = 0
    return found


def test_objectives_of_a_view_share_one_corrupted_forward() -> None:
    module = root(mlm=FakeMLM(), match=FakeMatch(), other=FakeMatch(view="own"))
    scores = module(sample_batch([0, 1, 2]))
    assert list(scores) == ["mlm", "match", "other"] and Counting.calls == 2
    assert not torch.equal(scores["match"].sum, scores["other"].sum), "one read the masked words, the other the whole ones"


def test_untouched_views_share_a_forward_too() -> None:
    module = root(a=FakeMatch(view="a"), b=FakeMatch(view="b"))
    module(sample_batch([0, 1]))
    assert Counting.calls == 1


def test_views_that_mask_regions_apart_do_not_share_a_forward() -> None:
    module = root(a=FakeMatch(view="a"), b=FakeMatch(view="b"))
    batch = sample_batch([0, 1])
    masked = batch._replace(regions=RegionBatch(torch.zeros(2, 3), torch.zeros(2, 4), (1, 1), ((8, 8),) * 2))
    module({"a": batch, "b": masked})
    assert Counting.calls == 2


def test_counts_are_those_of_the_scores() -> None:
    module = root(mlm=FakeMLM(), match=FakeMatch(view="own"))
    views = module.corrupt(sample_batch(list(range(6))))
    counts, scores = module.counts(views), module(views)
    assert Counting.calls == 2 and all(torch.equal(counts[name], scores[name].count.float()) for name in scores)


def test_leaving_out_a_loss_does_not_change_the_input_of_another() -> None:
    module, batch = root(mlm=FakeMLM(), match=FakeMatch()), sample_batch([0, 1, 2])
    assert torch.equal(module(batch)["match"].sum, module(batch, ["match"])["match"].sum)


def test_a_view_may_read_an_earlier_one() -> None:
    module = root(mlm=FakeMLM(), reader=Reader(view="second", after="main"))
    assert module.chained and [view.name for view in module.order(["reader"])] == ["main", "second"]
    assert list(module(sample_batch([0, 1]), ["reader"])) == ["reader"]
    assert module.objectives["reader"].seen is not None


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ({"a": FakeMatch(view="x", after="y")}, "not the view of an earlier objective"),
        ({"m": FakeMatch(), "a": FakeMatch(view="x"), "b": FakeMatch(view="x", after="main")}, "differ in kind or after"),
        ({}, "at least one objective"),
    ],
)
def test_impossible_recipes_are_refused(objectives: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pretraining(FakeModel(), objectives)
    assert group_views({"a": FakeMatch()})["main"].names == ("a",)


def test_a_view_has_one_objective_that_exchanges_pictures_or_texts() -> None:
    """With two, a pair that one calls true may have the picture that the other put there."""
    with pytest.raises(ValueError, match="'sip' and 'itm' both exchange pictures or texts of samples in the view 'main'"):
        group_views({"sip": SIP(), "itm": ITM(view="main")})
    assert list(group_views({"sip": SIP(), "mlm": MLM(), "itm": ITM()})) == ["main", "itm"]
    apart = {"tags": TagContrast(sources=("web",)), "itm": ITM(view="main", sources=("books",))}
    assert group_views(apart)["main"].names == ("tags", "itm")


def test_objectives_read_their_sources_alone() -> None:
    module = root(mlm=FakeMLM(), match=FakeMatch(sources=["web"]), late=FakeMatch(view="second", sources=("books",)))
    assert module.reading("web") == ["mlm", "match"] and module.reading("books") == ["mlm", "late"]
    assert module.reading("") == ["mlm", "match", "late"]
    batch = sample_batch([0, 1])._replace(source="books")
    assert list(module(batch, module.reading("books"))) == ["mlm", "late"]
    for step in range(20):
        assert tasks(module, step, "web", 0, "sample", None) == ["mlm", "match"]
        assert tasks(module, step, "books", 0, "sample", None) in (["mlm"], ["late"])
    drawn = {tuple(tasks(module, step, "books", 0, "sample", {"second": 3.0})) for step in range(40)}
    assert drawn == {("mlm",), ("late",)} and tasks(module, 0, "web", 0, "all", None) == ["mlm", "match"]


def test_what_does_not_read_a_source_does_not_corrupt_its_batches() -> None:
    module = root(mlm=FakeMLM(sources=("web",)), match=FakeMatch())
    batch = sample_batch([0, 1, 2])
    assert torch.equal(module.corrupt(batch._replace(source="books"))["main"].text.ids_BT, batch.text.ids_BT)
    assert not torch.equal(module.corrupt(batch._replace(source="web"))["main"].text.ids_BT, batch.text.ids_BT)


def test_ties_are_found_and_asserted() -> None:
    module = root(mlm=FakeMLM())
    groups = ties(module)
    assert groups == [("model.words.weight", "objectives.mlm.decoder.weight")]
    module.objectives["mlm"].decoder.weight = torch.nn.Parameter(module.model.words.weight.detach().clone())
    with pytest.raises(RuntimeError, match="untied"):
        assert_tied(module, groups)


def test_parameters_born_on_meta_become_real_and_stay_tied() -> None:
    with torch.device("meta"):
        pair = torch.nn.ModuleDict({"table": torch.nn.Embedding(5, 4), "decoder": torch.nn.Linear(4, 5)})
        pair["decoder"].weight = pair["table"].weight
    materialise(pair)
    assert pair["decoder"].weight is pair["table"].weight and pair["table"].weight.isfinite().all()
    with torch.device("meta"):
        model = FakeModel()
    with pytest.raises(ValueError, match="FakeModel has parameters on the meta device"):
        materialise(model)
