"""Published layouts: the names and shapes of released code, exact round trips, nothing dropped without a word, files of every kind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import published, tiny
from helpers.published import SYSTEMS, golden, made
from safetensors.torch import save_file
from torch import Tensor, nn

from mmpretrain.methods.transform import Around
from mmpretrain.weights.files import WeightsError
from mmpretrain.weights.keymap import KeyMapError
from mmpretrain.weights.layout import from_published, is_kind, to_published
from mmpretrain.weights.published import FromPublished, import_weights

OBJECTIVES = {"itm": "ITM", "sip": "SIP", "tags": "TagContrast", "vqa": "VQA"}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def with_heads(heads: dict[str, nn.Module]) -> dict[str, Any]:
    """What a run has: objects called as the objectives are, each with its head."""
    return {kind: type(OBJECTIVES.get(kind, kind), (), {"head": head})() for kind, head in heads.items()}


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.golden])
def test_names_and_shapes_of_released_code(name: str) -> None:
    model, heads = made(name)
    theirs = {key: tuple(t.shape) for key, t in to_published(SYSTEMS[name].layout, model, heads).items()}
    released = golden(SYSTEMS[name].golden)
    dropped = {key for key in released if any(part in key for part in SYSTEMS[name].dropped)}
    assert bool(dropped) == bool(SYSTEMS[name].dropped)
    assert theirs == {key: shape for key, shape in released.items() if key not in dropped}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", SYSTEMS)
def test_round_trips_are_exact(name: str, tied: bool) -> None:
    layout = SYSTEMS[name].layout
    model, heads = made(name, tied=tied)
    theirs = to_published(layout, model, heads)
    back = from_published(layout, model, {key: t.clone() for key, t in theirs.items()})
    same(back.model, model.state_dict())
    assert back.heads.keys() == heads.keys() and back.unused == ()
    for kind, head in heads.items():
        same(back.heads[kind], head.state_dict())
    fresh, own = made(name, seed=7, tied=tied)
    fresh.load_state_dict(back.model)
    for kind, head in own.items():
        head.load_state_dict(back.heads[kind])
    same(to_published(layout, fresh, own), theirs)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_model_alone(name: str) -> None:
    model, heads = made(name)
    theirs = to_published(SYSTEMS[name].layout, model)
    back = from_published(SYSTEMS[name].layout, model, theirs)
    assert back.heads == {} and len(heads) == len(SYSTEMS[name].heads)
    same(back.model, model.state_dict())


@pytest.mark.parametrize("name", SYSTEMS)
def test_names_of_other_versions(name: str) -> None:
    """DataParallel's prefix, the first BERTs' names of norms, index buffers, half precision."""
    layout = SYSTEMS[name].layout
    model, heads = made(name)
    theirs = to_published(layout, model, heads)
    old = {}
    for key, tensor in theirs.items():
        for new, former in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
            key = key.replace(new, former)
        old[f"module.{key}"] = tensor
    old["module.bert.embeddings.position_ids"] = torch.arange(12)[None]
    back = from_published(layout, model, old)
    same(back.model, model.state_dict())
    half = from_published(layout, model, {key: t.half() for key, t in theirs.items()})
    assert {t.dtype for t in half.model.values() if t.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("name", SYSTEMS)
def test_nothing_is_dropped_or_made_up(name: str) -> None:
    layout = SYSTEMS[name].layout
    model, heads = made(name)
    theirs = to_published(layout, model, heads)
    with pytest.raises(WeightsError, match=r"has no place for (bert|uniter)\.router\.weight"):
        from_published(layout, model, {**theirs, "bert.router.weight": torch.zeros(1)})
    with pytest.raises(KeyMapError, match="no place in the layout"):
        to_published(layout, model, {**heads, "router": nn.Linear(2, 2)})
    first = next(key for key in theirs if "query" in key or "qkv" in key)
    with pytest.raises(KeyMapError, match=r"(nothing is called|is not)"):
        from_published(layout, model, {key: t for key, t in theirs.items() if key != first.replace("query", "key")})
    other = next(system for key, system in SYSTEMS.items() if system.layout.model is not layout.model)
    with pytest.raises(WeightsError, match=f"layout '{layout.name}' is of {layout.model.__name__}, the model is"):
        from_published(layout, other.model(), theirs)


def saved(path: Path, state: dict[str, Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: t.numpy() for name, t in state.items()})
    elif path.suffix == ".tar":  # a checkpoint of a trainer
        torch.save({"epoch": 3, "state_dict": state, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("file", ["a.safetensors", "a.pth", "a.th", "a.pytorch.tar", "a.npz"])
def test_files(file: str, tmp_path: Path) -> None:
    model, heads = made("lxmert")
    path = saved(tmp_path / file, to_published(SYSTEMS["lxmert"].layout, model, heads))
    fresh, own = made("lxmert", seed=5)
    import_weights(fresh, path, objectives=with_heads(own))
    same(fresh.state_dict(), model.state_dict())
    for kind, head in own.items():
        same(head.state_dict(), heads[kind].state_dict())


def test_what_is_not_opened(tmp_path: Path) -> None:
    model, _ = made("lxmert")
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(WeightsError, match=r"it was not opened, since that could run code.*torch\.save\(module\.state_dict\(\), NEW\)"):
        import_weights(model, tmp_path / "whole.pth")
    torch.save({"args": SimpleNamespace(lr=1), "model": {}}, tmp_path / "args.pth")
    with pytest.raises(WeightsError, match="was not opened"):
        import_weights(model, tmp_path / "args.pth")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        import_weights(model, tmp_path / "objects.npz")
    for name, content in (
        ("torn.pth", b"PK\x03\x04 torn"),
        ("junk.pth", b"junk"),
        ("torn.safetensors", b"\x10\0\0\0\0\0\0\0{"),
        ("empty.npz", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match="cannot be read as weights"):
            import_weights(model, tmp_path / name)
    torch.save({"epoch": 1}, tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="holds no state dict"):
        import_weights(model, tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="no such file"):
        import_weights(model, tmp_path / "gone.pth")


def test_other_sizes_systems_and_layouts(tmp_path: Path) -> None:
    model, _ = made("lxmert")
    state = to_published(SYSTEMS["lxmert"].layout, model)
    wider = {**state, "bert.embeddings.word_embeddings.weight": torch.zeros(99, 24)}
    path = saved(tmp_path / "a.safetensors", wider)
    with pytest.raises(WeightsError, match=r"text.words.weight is \(99, 24\), the model has \(30, 24\); build the model in the sizes"):
        import_weights(model, path)
    with pytest.raises(WeightsError, match="no layout 'bert'; known are lxmert"):
        import_weights(model, path, "bert")
    with pytest.raises(WeightsError, match="no published layout of ViLT is known"):
        import_weights(tiny.vilt(), path)
    with pytest.raises(WeightsError, match=r"\(visualbert\): the layout 'visualbert': nothing is called bert.bert"):
        import_weights(made("visualbert")[0], path)
    shallow = {key: t for key, t in state.items() if "r_layers.1" not in key}
    with pytest.raises(WeightsError, match=r"has nothing for image_blocks\.blocks\.1"):
        import_weights(model, saved(tmp_path / "b.safetensors", shallow))


def test_heads_that_do_not_fit_stay(tmp_path: Path) -> None:
    """An untied decoder has no place in a tied head, a tied one fills an untied head; other sizes are left alone."""
    model, heads = made("lxmert", tied=False)
    path = saved(tmp_path / "untied.safetensors", to_published(SYSTEMS["lxmert"].layout, model, heads))
    fresh, own = made("lxmert", seed=5)
    own["vqa"] = published.AnswerHead(24, 4)
    before = {kind: {key: t.clone() for key, t in head.state_dict().items()} for kind, head in own.items()}
    transform = FromPublished(str(path), "lxmert")
    transform(fresh, Around(with_heads(own)))
    assert transform.said.startswith(f"LXMERT starts as {path} (lxmert); heads filled: itm, objects; heads left as they were: mlm, vqa;")
    same(own["mlm"].state_dict(), before["mlm"])
    same(own["vqa"].state_dict(), before["vqa"])
    same(own["itm"].state_dict(), heads["itm"].state_dict())

    model, heads = made("lxmert")
    path = saved(tmp_path / "tied.safetensors", to_published(SYSTEMS["lxmert"].layout, model, heads))
    fresh, own = made("lxmert", seed=5, tied=False)
    FromPublished(str(path), "lxmert")(fresh, Around(with_heads(own)))
    assert torch.equal(own["mlm"].decoder.weight, model.text.words.weight)
    kept = {key: t.clone() for key, t in own["itm"].state_dict().items()}
    FromPublished(str(path), "lxmert", heads=False)(fresh, Around(with_heads({"itm": tiny.shake(own["itm"], 9)})))
    assert not torch.equal(own["itm"].weight, kept["weight"])


def test_objectives_are_told_by_their_heads() -> None:
    """The real objectives, bound to a model: every kind is found, and no objective is of two."""
    from mmpretrain.objectives import itm, mlm, mrc, mrfr, objects, sip, tags, vqa

    model = published.single_stream.uniter()
    made_ones = {
        "mlm": mlm.MLM(), "itm": itm.ITM(), "sip": sip.SIP(), "tags": tags.TagContrast(), "mrc": mrc.MRC(classes=9), "mrfr": mrfr.MRFR(),
        "objects": objects.Objects(classes=9, attributes=4), "vqa": vqa.VQA(answers=9),
    }  # fmt: skip
    for kind, objective in made_ones.items():
        objective.bind(model.spec, None)
        assert objective.head.state_dict().keys() == published.head(kind, model).state_dict().keys()
        assert [one for one in published.KINDS if is_kind(one, objective)] == [kind]
