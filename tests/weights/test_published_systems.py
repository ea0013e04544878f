"""Checkpoints of released code, read through their layouts: the states that the code itself gave for them; what each system means by its
rows; what a file may have beside the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import closed_form, official, official_single, published, tiny, two_streams
from helpers.published import SYSTEMS, golden, made
from models import test_vlbert_release as vlbert_release
from torch import Tensor, nn

from mmpretrain.nn.region_heads import RegionHead
from mmpretrain.objectives.tags import RELEASED
from mmpretrain.types import Batch
from mmpretrain.weights.files import WeightsError
from mmpretrain.weights.keymap import KeyMapError
from mmpretrain.weights.layout import from_published, to_published
from mmpretrain.weights.published import import_weights

STATES = Path(__file__).parents[1] / "golden"


def released(name: str, model: nn.Module, trunk: str) -> dict[str, Tensor]:
    """The trunk of a released checkpoint: its names (see ``test_published``), and for each the values of the golden files."""
    shapes = {key: tuple(t.shape) for key, t in to_published(SYSTEMS[name].layout, model).items()}
    return {key: torch.from_numpy(official.values(key.removeprefix(trunk), shape)).float() for key, shape in shapes.items()}


CASES: dict[str, tuple[str, nn.Module, Batch, str, str]] = {
    "vilbert": ("vilbert", two_streams.vilbert(), official.batch(), "bert.", "vilbert"),
    "interbert": ("interbert", two_streams.interbert(), official.batch(official.INTERBERT), "bert.", "interbert"),
    "uniter": ("uniter", official_single.filled("uniter"), official_single.inputs("uniter"), "uniter.", "uniter"),
    "villa": ("uniter", official_single.filled("villa"), official_single.inputs("villa"), "uniter.", "villa"),
    "oscar": ("oscar", official_single.filled("oscar"), official_single.inputs("oscar"), "bert.", "oscar"),
    "oscar_plus": ("oscar-plus", official_single.filled("oscar_plus"), official_single.inputs("oscar_plus"), "bert.", "oscar_plus"),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_states_of_released_checkpoints(case: str) -> None:
    name, model, batch, trunk, file = CASES[case]
    state = released(name, model, trunk)
    tiny.shake(model, 99)  # nothing of the right values is left
    model.load_state_dict(from_published(SYSTEMS[name].layout, model, state).model)
    out = model.eval()(batch)
    with np.load(STATES / f"{file}_states.npz") as expected:
        for part, got in (("text", out.text.x_ND), ("image", out.image.x_ND), ("pooled", out.pooled_BD)):
            torch.testing.assert_close(got, torch.from_numpy(expected[part]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("pixels", [False, True])
def test_vlbert_has_the_tensors_of_its_release(pixels: bool) -> None:
    """Those with which the released states were reproduced, the trained network and the heads included."""
    model, heads = vlbert_release.build(pixels)
    shapes = golden("vlbert_pixels" if pixels else "vlbert")
    state = {key: closed_form.weight(key, shape) for key, shape in shapes.items()}
    for key in [key for key in state if ".head.0." in key]:  # the same layers under a second name
        state[key] = state[key.replace(".head.0.", ".roi_head_feature_extractor.")]
    state["vlbert.mlm_head.predictions.decoder.weight"] = state["vlbert.word_embeddings.weight"]
    found = from_published(SYSTEMS["vlbert"].layout, model, state)
    for mine, theirs in ((model, found.model), (heads["mlm"], found.heads["mlm"]), (heads["mvrc"], found.heads["mrc"])):
        own = mine.state_dict()
        assert own.keys() == theirs.keys() and all(torch.equal(own[key], theirs[key]) for key in own)
    if pixels:
        with torch.device("meta"):
            big = published.vlbert("resnet50")
            own = {kind: published.head(kind, big) for kind in ("mlm", "mrc")}
        assert {key: tuple(t.shape) for key, t in to_published(SYSTEMS["vlbert"].layout, big, own).items()} == shapes


@pytest.mark.parametrize(("name", "kind", "theirs", "match"), [
    ("lxmert", "itm", "cls.seq_relationship", 1),
    ("visualbert", "sip", "bert.cls.seq_relationship", 1),
    ("visualbert-transformers", "sip", "cls.seq_relationship", 1),
    ("vilbert", "itm", "cls.bi_seq_relationship", 0),
    ("interbert", "itm", "cls.bi_seq_relationship", 0),
    ("uniter", "itm", "itm_output", 1),
    ("vlbert-pooler", "itm", "vlbert.relationsip_head.caption_image_relationship", 1),
    ("oscar", "tags", "cls.seq_relationship", 0),
    ("oscar-plus", "tags", "cls.seq_relationship", 0),
])  # fmt: skip
def test_which_row_means_a_match(name: str, kind: str, theirs: str, match: int) -> None:
    model, heads = made(name)
    state, head = to_published(SYSTEMS[name].layout, model, heads), heads[kind]
    assert torch.equal(state[f"{theirs}.weight"][match], head.weight[1])
    assert torch.equal(state[f"{theirs}.bias"][match], head.bias[1])
    assert torch.equal(state[f"{theirs}.weight"][1 - match], head.weight[0])


@pytest.mark.parametrize(("name", "classes"), [("oscar", 2), ("oscar-plus", 3)])
def test_rows_of_oscar_are_those_of_its_objective(name: str, classes: int) -> None:
    model, heads = made(name)
    state = to_published(SYSTEMS[name].layout, model, heads)
    for theirs, ours in enumerate(RELEASED[classes]):
        assert torch.equal(state["cls.seq_relationship.weight"][theirs], heads["tags"].weight[ours])


def test_the_first_row_of_uniters_mask_embedding_is_zero() -> None:
    model, _ = made("uniter")
    table = to_published(SYSTEMS["uniter"].layout, model)["uniter.img_embeddings.mask_embedding.weight"]
    assert table.shape == (2, 12) and not table[0].any() and torch.equal(table[1:], model.regions.mask_embedding)
    assert to_published(SYSTEMS["uniter"].layout, *made("uniter"))["feat_regress.weight"].shape == (48, 12)


def test_files_of_villa_that_say_bert() -> None:
    """Its scripts put ``uniter`` in the place of ``bert`` in every name; both spellings give the same model and heads."""
    layout, (model, heads) = SYSTEMS["uniter"].layout, made("uniter")
    state = to_published(layout, model, heads)
    old = {key.replace("uniter", "bert"): t for key, t in state.items()}
    assert {key.replace("bert", "uniter") for key in old} == set(state) and sum(key.startswith("bert.") for key in old) > 30
    back = from_published(layout, model, {f"module.{key}": t for key, t in old.items()})
    own = model.state_dict()
    assert own.keys() == back.model.keys() and all(torch.equal(own[key], t) for key, t in back.model.items())
    assert back.heads.keys() == heads.keys() and back.unused == ()
    for kind, head in heads.items():
        assert all(torch.equal(back.heads[kind][key], t) for key, t in head.state_dict().items())


def ernie_names(depths: tuple[int, int, int], widths: tuple[int, int, int], inner: int, seen_inner: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of ERNIE-ViL's variables, written down from its code."""
    (text, image, co), (width, seen, both) = depths, widths
    found: dict[str, tuple[int, ...]] = {"word_embedding": (30, width), "pos_embedding": (12, width), "sent_embedding": (4, width)}

    def linear(name: str, n_in: int, n_out: int) -> None:
        found[f"{name}.w_0"], found[f"{name}.b_0"] = (n_in, n_out), (n_out,)

    def norm(name: str, size: int) -> None:
        found[f"{name}_layer_norm_scale"] = found[f"{name}_layer_norm_bias"] = (size,)

    def layer(name: str, own: int, other: int, read: int, hidden: int, prefix: str = "") -> None:
        for part, n_in, n_out in (("query", own, read), ("key", other, read), ("value", other, read), ("output", read, own)):
            linear(f"{name}_{prefix}multi_head_att_{part}_fc", n_in, n_out)
        norm(f"{name}_{prefix}post_att", own)
        linear(f"{name}_{prefix}ffn_fc_0", own, hidden)
        linear(f"{name}_{prefix}ffn_fc_1", hidden, own)
        norm(f"{name}_{prefix}post_ffn", own)

    norm("pre_encoder", width)
    norm("vl_pre_encoder", seen)
    linear("image_emb", 10, seen)
    linear("image_loc", 5, seen)
    linear("pooled_fc_text", width, both)
    linear("pooled_fc_image", seen, both)
    for i in range(text):
        layer(f"encoder_layer_{i}", width, width, width, inner)
    for i in range(image):
        layer(f"encoder_vlayer_{i}", seen, seen, seen, seen_inner)
    for i in range(co):
        layer(f"encoder_colayer_{i}", width, seen, both, inner)
        layer(f"encoder_colayer_{i}", seen, width, both, seen_inner, "vl_")
    return found


def test_ernie_vil_has_the_variables_of_its_code() -> None:
    """Of equal widths: keys and values of co-attention read the other stream there."""
    sizes = official.VILBERT._replace(image=24, image_heads=4)
    model = tiny.shake(two_streams.ernie_vil(sizes=sizes))
    state = to_published(SYSTEMS["ernie-vil"].layout, model)
    expected = ernie_names((3, 2, 2), (24, 24, sizes.pooled), sizes.text_hidden, sizes.image_hidden)
    assert {key: tuple(t.shape) for key, t in state.items()} == expected
    assert torch.equal(state["encoder_layer_2_ffn_fc_0.w_0"], model.text_blocks.blocks[2].mlp.up.weight.T)


UNUSED = {
    "vilbert": {"bert.encoder.c_layer.0.biOutput.q_dense1.weight": 2, "bert.encoder.c_layer.1.biOutput.q_dense2.bias": 1,
                "vil_prediction.logit_fc.0.weight": 2, "vision_logit.bias": 1},
    "uniter": {"vqa_output.0.weight": 2, "rank_output.bias": 1},
    "oscar": {"classifier.weight": 2},
    "visualbert": {"bert.cls.weight": 2},
    "visualbert-transformers": {"cls.bias": 1},
    "vlbert": {"final_mlp.1.weight": 2},
    "ernie-vil": {"word_embedding_moment1_0": 2, "encoder_layer_0_post_att_layer_norm_scale_beta1_pow_acc_0": 1, "vcr_qar_fc.w_0": 2,
                  "vqa_fc_b_1": 1, "cls_seq_label_vl_out_w": 2, "match_fc.b_0": 1, "scheduled_learning_rate": 1, "@LR_DECAY_COUNTER@": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSED)
def test_what_is_known_to_be_left_over(name: str) -> None:
    model, _ = made(name)
    state = to_published(SYSTEMS[name].layout, model)
    more = {key: torch.ones((3,) * dims) for key, dims in UNUSED[name].items()}
    found = from_published(SYSTEMS[name].layout, model, {**state, **more})
    assert set(found.unused) == set(more) and found.heads == {}


@pytest.mark.parametrize(("name", "more"), [
    ("vilbert", "bert.encoder.v_layer.0.attention.self.dyLinear_q.weight"),
    ("oscar", "bert.code_embeddings.weight"),
    ("vlbert", "vlbert.visual_1x1_text.weight"),
    ("vlbert", "vlbert.special_word_embeddings.weight"),
    ("ernie-vil", "task_embedding"),
    ("ernie-vil", "encoder_layer_0_multi_head_att_gate_fc.w_0"),
])  # fmt: skip
def test_what_would_change_the_states_is_refused(name: str, more: str) -> None:
    model, _ = made(name)
    with pytest.raises(WeightsError, match=f"has no place for {more}"):
        from_published(SYSTEMS[name].layout, model, {**to_published(SYSTEMS[name].layout, model), more: torch.ones(2, 2)})


def test_the_table_of_tasks_of_12_in_1(tmp_path: Path) -> None:
    """``multi_task_model.bin`` has one, ``pretrained_model.bin`` has none; a file of the other kind is refused by the name of the part."""
    layout, (plain, heads) = SYSTEMS["vilbert"].layout, made("vilbert")
    several, fresh = (tiny.shake(two_streams.vilbert(tasks=20, task=7), seed) for seed in (3, 4))
    table = {"bert.embeddings.task_embeddings.weight": several.tasks.weight.detach()}
    state = to_published(layout, several, heads)
    assert state.keys() == to_published(layout, plain, heads).keys() | table.keys()
    assert torch.equal(state["bert.embeddings.task_embeddings.weight"], several.tasks.weight)
    torch.save({**state, "vil_logit.weight": torch.ones(1, 20)}, tmp_path / "several.bin")
    found = import_weights(fresh, tmp_path / "several.bin", "vilbert")
    assert found.unused == ("vil_logit.weight",) and found.heads.keys() == heads.keys()
    batch = two_streams.batch()
    assert torch.equal(fresh(batch).pooled_BD, several(batch).pooled_BD)
    with pytest.raises(WeightsError, match=r"tasks\.weight is \(20, 24\), the model has no such part"):
        import_weights(plain, tmp_path / "several.bin", "vilbert")
    torch.save(to_published(layout, plain, heads), tmp_path / "one.bin")
    with pytest.raises(WeightsError, match=r"has nothing for tasks\.weight of the model"):
        import_weights(fresh, tmp_path / "one.bin", "vilbert")


def test_oscar_and_its_successor_are_told_apart() -> None:
    plain, plus = made("oscar")[0], made("oscar-plus")[0]
    with pytest.raises(KeyMapError, match=r"nothing is called bert\.LayerNorm"):
        from_published(SYSTEMS["oscar-plus"].layout, plus, to_published(SYSTEMS["oscar"].layout, plain))
    with pytest.raises(WeightsError, match=r"no place for bert\.LayerNorm"):
        from_published(SYSTEMS["oscar"].layout, plain, to_published(SYSTEMS["oscar-plus"].layout, plus))


SIZES = {
    "vilbert-base": "vilbert", "vilbert-large": "vilbert", "lxmert-base": "lxmert", "uniter-base": "uniter", "uniter-large": "uniter",
    "visualbert-base": "visualbert", "interbert-base": "interbert", "oscar-base": "oscar", "oscar-plus-large": "oscar-plus",
    "ernie-vil-base": "ernie-vil", "ernie-vil-large": "ernie-vil",
}  # fmt: skip


def shipped(size: str) -> nn.Module:
    """A model of the shipped sizes, without memory."""
    from mmpretrain.cli.layering import layer
    from mmpretrain.evaluate.rebuild import build

    with torch.device("meta"):
        return build(layer([f"sizes/{size}.yaml"]).config["model"]["system"], nn.Module, size)


@pytest.mark.parametrize("size", SIZES)
def test_the_published_sizes_have_a_place(size: str) -> None:
    """Every parameter of the shipped sizes finds a name, and none is lost on the way."""
    model = shipped(size)
    state = to_published(SYSTEMS[SIZES[size]].layout, model)
    more = model.spec.feature_width if size.startswith("uniter") else 0  # the row of the mask embedding that is zero
    assert sum(t.numel() for t in state.values()) == sum(p.numel() for p in model.parameters()) + more


def test_uniter_has_the_parameters_of_its_release() -> None:
    """But for 2,048: row 0 of the mask embedding, which is zero in every forward of the release. Tied tables count once."""
    model = shipped("uniter-base")
    with torch.device("meta"):
        heads = {"mlm": published.head("mlm", model), "itm": published.head("itm", model), "mrfr": published.head("mrfr", model)}
        heads["mrc"] = RegionHead(768, 1601)
    trunk = sum(p.numel() for p in model.parameters())
    whole = sum(p.numel() for p in nn.ModuleDict({"model": model, **heads}).parameters())
    assert trunk + 2048 == 109_898_752 and whole + 2048 == 112_938_887
    layout = SYSTEMS["uniter"].layout
    state = to_published(layout, model, heads)
    tied = ("cls.predictions.decoder.weight", "feat_regress.weight")
    assert sum(t.numel() for key, t in state.items() if key not in tied) == 112_938_887
    assert state["uniter.img_embeddings.mask_embedding.weight"].shape == (2, 2048) and model.regions.mask_embedding.shape == (1, 2048)


@pytest.mark.parametrize(("size", "name"), [("lxmert-base", "Lxmert"), ("visualbert-base", "VisualBert")])
def test_the_published_sizes_are_those_of_transformers(size: str, name: str) -> None:
    import transformers

    from mmpretrain.weights import lxmert, visualbert

    model, module = shipped(size), lxmert if name == "Lxmert" else visualbert
    system = SYSTEMS[f"{size.partition('-')[0]}-transformers"]
    with torch.device("meta"):
        heads = {kind: published.head(kind, model) for kind in system.heads}
    settings = {key: value for key, value in module.transformers_config(model, heads).items() if key not in ("architectures", "model_type")}
    default = getattr(transformers, f"{name}Config")()
    different = {key for key, value in settings.items() if getattr(default, key) != value}
    sizes_of_heads = {"num_qa_labels", "num_object_labels", "num_attr_labels", "visual_loss_normalizer"}
    assert different <= {*sizes_of_heads, "visual_embedding_dim", "special_visual_initialize"}
    with torch.device("meta"):
        twin = getattr(transformers, f"{name}ForPreTraining")(type(default)(**settings))
    theirs = {key: tuple(t.shape) for key, t in twin.state_dict().items()}
    assert {key: tuple(t.shape) for key, t in to_published(system.layout, model, heads).items()} == theirs
