"""Every way to embed regions against the published formula written out for one region after another; the whole picture; deltas."""

from typing import Any

import pytest
import torch
from helpers.region_batches import region_batch
from helpers.tiny import shake

from mmpretrain.nn.boxes import iou
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Layout
from mmpretrain.nn.regions import RegionEmbedder, with_global
from mmpretrain.types import RegionBatch

WIDTH, FEATURES, LENGTHS = 16, 12, (5, 1, 7, 3)


def norm(x: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-12).sqrt() * layer.weight + layer.bias


def code(box: list[float], size: tuple[int, int], kind: str) -> torch.Tensor:
    (x1, y1, x2, y2), (height, width) = box, size
    corners, sides = [x1 / width, y1 / height, x2 / width, y2 / height], [(x2 - x1) / width, (y2 - y1) / height]
    area = [sides[0] * sides[1]]
    return torch.tensor({"xyxy": corners, "xyxya": corners + area, "xyxywh": corners + sides, "xyxywha": corners + sides + area}[kind])


def sums(m: RegionEmbedder, f: torch.Tensor, box: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """ViLBERT (arXiv 1908.02265), Unicoder-VL (1908.06066), InterBERT (2003.13198); ImageBERT (2001.07966) with ``row``."""
    return norm(m.projection(f) + m.box_projection(box) + row, m.norm)


def uniter(m: RegionEmbedder, f: torch.Tensor, box: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    return norm(norm(m.projection(f), m.feature_norm) + norm(m.box_projection(box), m.box_norm) + row, m.norm)


def lxmert(m: RegionEmbedder, f: torch.Tensor, box: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    return (norm(m.projection(f), m.feature_norm) + norm(m.box_projection(box), m.box_norm)) / 2


def visualbert(m: RegionEmbedder, f: torch.Tensor, box: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    return m.projection(f) + m.positions.weight[0] + m.types.weight[0]


def oscar(m: RegionEmbedder, f: torch.Tensor, box: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    return m.projection(torch.cat([f, box]))


def oscar_plus(m: RegionEmbedder, f: torch.Tensor, box: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    return norm(m.projection(torch.cat([f, box])), m.norm)


CASES: list[tuple[Any, dict[str, Any], bool]] = [
    (sums, {"box": "xyxya"}, False),
    (sums, {"box": "xyxya"}, True),
    (uniter, {"box": "xyxywha", "branch_eps": 1e-12}, True),
    (lxmert, {"box": "xyxy", "branch_eps": 1e-12, "norm_eps": None, "combine": "mean"}, False),
    (visualbert, {"box": "none", "norm_eps": None, "positions": 6, "types": 2}, False),
    (oscar, {"box": "xyxywh", "combine": "concat", "norm_eps": None}, False),
    (oscar_plus, {"box": "xyxywh", "combine": "concat"}, False),
]


@pytest.mark.parametrize(("formula", "options", "with_row"), CASES)
def test_equals_the_formula(formula: Any, options: dict[str, Any], with_row: bool) -> None:
    module = shake(RegionEmbedder(WIDTH, FEATURES, **options))
    regions = region_batch(LENGTHS)._replace(sizes=((480, 640), (500, 700), (480, 640), (900, 1200)))
    row = torch.randn(WIDTH) if with_row else torch.zeros(WIDTH)
    got, prefix = module(regions, row if with_row else None)
    assert prefix == 0 and got.layout.lengths == LENGTHS
    sample = got.layout.sample_N(row.device).tolist()
    for n in range(sum(LENGTHS)):
        size = regions.sizes[sample[n]]
        box = code(regions.boxes_N4[n].tolist(), size, options["box"]) if options["box"] != "none" else row
        torch.testing.assert_close(got.x_ND[n], formula(module, regions.features_NF[n], box, row), atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", ["all", "kept", "overlap"])
def test_the_whole_picture_comes_first(count: str) -> None:
    """Its feature is the mean by the rule, its box 0, 0, 1, 1, 1; the regions are embedded as without it."""
    options = {"box": "xyxya", "global_count": count}
    module = shake(RegionEmbedder(WIDTH, FEATURES, global_feature="first", **options))
    regions = region_batch(LENGTHS, seed=2)
    chosen = torch.rand(sum(LENGTHS), generator=torch.Generator().manual_seed(4)) < 0.5
    chosen[5] = True  # the only region of its sample
    removed = chosen & (torch.arange(sum(LENGTHS)) != 2)
    features = regions.features_NF.masked_fill(removed[:, None], 0)
    regions = regions._replace(features_NF=features, chosen_N=chosen, removed_N=removed)
    got, prefix = module(regions)
    assert prefix == 1 and got.layout.lengths == tuple(n + 1 for n in LENGTHS)
    module.global_feature = "none"
    alone, _ = module(regions)
    overlaps, layout = iou(regions.boxes_N4, Layout(LENGTHS), pixels=True), Layout(LENGTHS)
    for i, length in enumerate(LENGTHS):
        rows = range(int(layout.starts[i]), int(layout.starts[i + 1]))
        near = [any(overlaps[i, a, b] > 0.4 and chosen[rows[b]] for b in range(length)) for a in range(length)]
        left = {"all": length, "kept": length - int(removed[rows].sum()), "overlap": length - sum(near)}[count]
        mean = features[rows].sum(0) / max(left, 1)
        whole = sums(module, mean, torch.tensor([0.0, 0, 1, 1, 1]), torch.zeros(WIDTH))
        start = int(got.layout.starts[i])
        torch.testing.assert_close(got.x_ND[start], whole, atol=1e-5, rtol=0)
        torch.testing.assert_close(got.x_ND[start + 1 : start + 1 + length], alone.x_ND[rows], atol=1e-6, rtol=0)


@pytest.mark.parametrize("source", ["mean", "given"])
@pytest.mark.parametrize("options", [options for _, options, _ in CASES])
def test_last_is_first_in_another_order(source: str, options: dict[str, Any]) -> None:
    module = shake(RegionEmbedder(WIDTH, FEATURES, global_feature="first", global_from=source, **options))
    whole_BF = torch.randn(len(LENGTHS), FEATURES, generator=torch.Generator().manual_seed(8))
    regions = region_batch(LENGTHS, seed=2)._replace(global_BF=whole_BF)
    (first, before), behind = module(regions), module.suffix
    assert (before, behind) == (1, 0)
    module.global_feature = "last"
    last, before = module(regions)
    assert (before, module.suffix) == (0, 1) and last.layout.lengths == first.layout.lengths == tuple(n + 1 for n in LENGTHS)
    moved = torch.cat([first.x_ND[i:j].roll(-1, 0) for i, j in zip(first.layout.starts[:-1], first.layout.starts[1:], strict=True)])
    torch.testing.assert_close(last.x_ND, moved, atol=1e-6, rtol=0)


def test_the_given_feature_of_the_whole_picture() -> None:
    """It is embedded as that of a region 0, 0, 1, 1, 1, whatever was masked; where there is none, that is said."""
    module = shake(RegionEmbedder(WIDTH, FEATURES, global_feature="first", global_from="given"))
    regions = region_batch(LENGTHS, seed=2)._replace(global_BF=None)
    whole_BF = torch.randn(len(LENGTHS), FEATURES, generator=torch.Generator().manual_seed(8))
    removed = torch.ones(sum(LENGTHS), dtype=torch.bool)
    masked = regions._replace(features_NF=0 * regions.features_NF, removed_N=removed, chosen_N=removed, global_BF=whole_BF)
    for shown in (regions._replace(global_BF=whole_BF), masked):
        got = module(shown)[0]
        for i, start in enumerate(got.layout.starts[:-1]):
            whole = sums(module, whole_BF[i], torch.tensor([0.0, 0, 1, 1, 1]), torch.zeros(WIDTH))
            torch.testing.assert_close(got.x_ND[int(start)], whole, atol=1e-5, rtol=0)
    with pytest.raises(Misfit, match=r"no feature of the whole picture \(global_feature of KEY.regions.npz\).*set global_from: mean"):
        module(regions)
    with pytest.raises(Misfit, match="has 3 values, those of the regions 12"):
        module(regions._replace(global_BF=whole_BF[:, :3]))
    module.global_from = "mean"  # what is given is not read
    assert torch.equal(module(regions._replace(global_BF=whole_BF))[0].x_ND, module(regions)[0].x_ND)


def test_counts_of_the_mean_differ_and_need_no_masker() -> None:
    regions = region_batch((6, 4), seed=5)
    plain = with_global(regions).features_NF
    for count in ("kept", "overlap"):
        assert torch.equal(with_global(regions, count).features_NF, plain)
    chosen = torch.tensor([True] + 9 * [False])
    masked = regions._replace(features_NF=regions.features_NF.masked_fill(chosen[:, None], 0), chosen_N=chosen, removed_N=chosen)
    ratio = with_global(masked, "kept").features_NF[0] / with_global(masked, "all").features_NF[0]
    torch.testing.assert_close(ratio, torch.full((FEATURES,), 6 / 5))


def test_removed_features_get_the_mask_embedding_and_nothing_else_does() -> None:
    module = shake(RegionEmbedder(WIDTH, FEATURES, "xyxywha", branch_eps=1e-12, mask_embedding=True))
    regions = region_batch(LENGTHS)
    removed = torch.arange(sum(LENGTHS)) % 3 == 0
    zeroed = regions.features_NF.masked_fill(removed[:, None], 0)
    masked = regions._replace(features_NF=zeroed, chosen_N=torch.ones_like(removed), removed_N=removed)
    got = module(masked)[0].x_ND
    torch.testing.assert_close(got[~removed], module(regions)[0].x_ND[~removed], atol=0, rtol=0)
    written = regions.features_NF.clone()
    written[removed] = module.mask_embedding.detach()[0]
    torch.testing.assert_close(got, module(regions._replace(features_NF=written))[0].x_ND, atol=1e-6, rtol=0)
    got.square().sum().backward()
    assert module.mask_embedding.grad.abs().max() > 0


@pytest.mark.parametrize("policy", ["none", "first", "last"])
def test_deltas_are_added_to_the_features_before_anything_is(policy: str) -> None:
    module = shake(RegionEmbedder(WIDTH, FEATURES, mask_embedding=True, global_feature=policy))
    regions = region_batch(LENGTHS)._replace(removed_N=torch.arange(sum(LENGTHS)) % 2 == 0)
    plain = module(regions)[0].x_ND
    zero = torch.zeros_like(regions.features_NF, requires_grad=True)
    assert torch.equal(module(regions._replace(delta_NF=zero))[0].x_ND, plain)
    delta = torch.randn_like(zero)
    moved = module(regions._replace(features_NF=regions.features_NF + delta))[0].x_ND
    torch.testing.assert_close(module(regions._replace(delta_NF=delta))[0].x_ND, moved, atol=1e-5, rtol=0)
    (grad,) = torch.autograd.grad(module(regions._replace(delta_NF=zero))[0].x_ND.square().sum(), zero)
    assert (grad.abs().amax(1) > 0).all()


def test_dropout_is_last_and_for_training_only() -> None:
    module = RegionEmbedder(WIDTH, FEATURES, dropout=0.5).eval()
    regions = region_batch(LENGTHS)
    plain = module(regions)[0].x_ND
    dropped = module.train()(regions)[0].x_ND
    zero = dropped == 0
    assert 0.3 < zero.float().mean() < 0.7
    torch.testing.assert_close(dropped[~zero], 2 * plain[~zero])


def test_born_on_meta_and_reset() -> None:
    torch.manual_seed(1)
    made = RegionEmbedder(WIDTH, FEATURES, mask_embedding=True, positions=3, types=2)
    with torch.device("meta"):
        born = RegionEmbedder(WIDTH, FEATURES, mask_embedding=True, positions=3, types=2)
    born.to_empty(device="cpu")
    for module in born.modules():
        if list(module.parameters(recurse=False)):
            module.reset_parameters()
    assert all(p.dim() > 0 and p.isfinite().all() for p in born.parameters())
    assert abs(made.mask_embedding.std().item() / 0.02 - 1) < 0.6
    assert {n: p.shape for n, p in made.named_parameters()} == {n: p.shape for n, p in born.named_parameters()}


def test_mistakes_are_named() -> None:
    for options, message in (
        ({"combine": "product"}, "combine"),
        ({"global_feature": "middle"}, "global_feature"),
        ({"global_count": "some"}, "global_count"),
        ({"global_from": "cls", "global_feature": "last"}, "global_from"),
        ({"global_from": "given"}, "global_from=given needs global_feature first or last"),
        ({"global_from": "given", "global_feature": "last", "global_count": "kept"}, "global_count all"),
        ({"box": "polar"}, "box code"),
        ({"box": "none", "combine": "concat"}, "needs a box code"),
        ({"combine": "concat", "branch_eps": 1e-12}, "its norm is norm_eps"),
        ({"init": "he"}, "unknown init"),
    ):
        with pytest.raises(ValueError, match=message):
            RegionEmbedder(WIDTH, FEATURES, **options)
    module, regions = RegionEmbedder(WIDTH, 2048), region_batch(LENGTHS)
    with pytest.raises(ValueError, match="features of 12 values, the model takes 2048"):
        module(regions)
    module = RegionEmbedder(WIDTH, FEATURES)
    with pytest.raises(ValueError, match=r"delta_NF must be \(16, 12\)"):
        module(regions._replace(delta_NF=torch.zeros(2, FEATURES)))
    with pytest.raises(ValueError, match="at least one region"):
        module(RegionBatch(torch.zeros(1, FEATURES), torch.zeros(1, 4), (1, 0), ((4, 4), (4, 4))))
    assert module.feature_projection is module.projection
    assert RegionEmbedder(WIDTH, FEATURES, combine="concat").feature_projection is None
