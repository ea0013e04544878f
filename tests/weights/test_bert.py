"""Models that start as a BERT compute what transformers' BERT computes, word for word, padding and token types included."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from helpers import single_stream, tiny, two_streams
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertModel,
    Data2VecTextConfig,
    Data2VecTextForMaskedLM,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from mmpretrain.methods.transform import Around
from mmpretrain.models.vlbert import VLBERT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.ragged import Layout, Ragged
from mmpretrain.nn.vlbert import VLBERTEmbedder
from mmpretrain.objectives.itm import ITM
from mmpretrain.objectives.mlm import MLM
from mmpretrain.objectives.sip import SIP
from mmpretrain.objectives.tags import TagContrast
from mmpretrain.objectives.text_contrast import MATCHED
from mmpretrain.types import Batch, Text
from mmpretrain.weights.bert import FromBERT

WORDS = 30
TOKENS = [f"w{n}" for n in range(WORDS)]


def config(width: int = 24, layers: int = 5, hidden: int = 40, words: int = WORDS, **options) -> BertConfig:
    return BertConfig(
        vocab_size=words, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=hidden,
        max_position_embeddings=16, attn_implementation="eager", **options,
    )  # fmt: skip


def saved(folder: Path, model: nn.Module, tokens: list[str] | None = None) -> Path:
    tiny.shake(model, 3).save_pretrained(folder)
    if tokens is not None:
        (folder / "vocab.txt").write_text("\n".join(tokens))
    return folder


def text(words: int = WORDS, seed: int = 1) -> Text:
    generator, lengths = torch.Generator().manual_seed(seed), (9, 4, 12, 6)
    ids = torch.randint(3, words, (4, 12), generator=generator)  # what pads is no zero
    return Text(ids, lengths, segments_BT=(torch.arange(12) >= torch.tensor(lengths)[:, None] // 2).long())


def reference(model: nn.Module, words: Text) -> tuple[Tensor, Tensor]:
    """Packed last states and the pooled state of a BertModel."""
    layout = Layout(words.lengths)
    mask = layout.mask_BL(torch.device("cpu")).long()
    out = model(input_ids=words.ids_BT, attention_mask=mask, token_type_ids=words.segments_BT)
    return layout.pack(out.last_hidden_state), out.pooler_output


@pytest.mark.parametrize("kind", ["vilbert", "ernie_vil", "lxmert", "interbert"])
@torch.no_grad()
def test_text_streams_equal_bert(kind: str, tmp_path: Path) -> None:
    """ViLBERT, ERNIE-ViL, LXMERT: text blocks alone; InterBERT: joint blocks, then text blocks."""
    options = {"eps": 1e-12, "segments": 2} if kind == "ernie_vil" else {}
    model = tiny.shake(two_streams.SYSTEMS[kind](**options))
    names = ("joint_blocks", "text_blocks") if kind == "interbert" else ("text_blocks",)
    depth = sum(getattr(model, name).depth for name in names)
    bert = BertModel(config(layers=depth + 1))  # one more than is used
    others = {name: t.clone() for name, t in model.state_dict().items() if not name.startswith(("text.", "pooler.", *names))}
    assert FromBERT(str(saved(tmp_path, bert)))(model) is model
    bert.encoder.layer = bert.encoder.layer[:depth]
    words = text()._replace(ids_BT=text().ids_BT % WORDS)
    x = model.text(words)
    for name in names:
        x = getattr(model, name)(x)
    torch.testing.assert_close(x.x_ND, reference(bert.eval(), words)[0], atol=1e-5, rtol=0)
    assert all(torch.equal(model.state_dict()[name], t) for name, t in others.items())


@pytest.mark.parametrize("kind", sorted(single_stream.MAKERS))
@torch.no_grad()
def test_single_streams_equal_bert_on_text(kind: str, tmp_path: Path) -> None:
    model = single_stream.shaken(kind)
    bert = BertModel(config(48, 3, 192, 60))
    saved(tmp_path, bert)
    FromBERT(str(tmp_path))(model)
    bert.encoder.layer = bert.encoder.layer[:2]
    words = text(60)
    out = model(Batch(("a", "b", "c", "d"), torch.arange(4), words))
    states, pooled = reference(bert.eval(), words)
    torch.testing.assert_close(out.text.x_ND, states, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.pooled_BD, pooled, atol=1e-5, rtol=0)
    if kind == "visualbert":  # as the release begins
        assert torch.equal(model.regions.positions.weight, bert.embeddings.position_embeddings.weight[:14])
        assert torch.equal(model.regions.types.weight, bert.embeddings.token_type_embeddings.weight)


@torch.no_grad()
def test_vlbert_has_the_tables_and_layers_of_bert(tmp_path: Path) -> None:
    embed = VLBERTEmbedder(60, 48, 12, positions=14, geometry=64)
    blocks = Transformer(48, 2, 4, norm="post", final_norm=False, eps=1e-12, activation_dropout=0.0, attention="eager")
    model = tiny.shake(VLBERT(embed, blocks, pooler=True))
    third = embed.segments.weight[2].clone()
    bert = BertModel(config(48, 2, 192, 60))
    FromBERT(str(saved(tmp_path, bert)))(model)
    tables = bert.embeddings
    assert torch.equal(embed.words.weight, tables.word_embeddings.weight)
    assert torch.equal(embed.positions.weight, tables.position_embeddings.weight[:14])
    assert torch.equal(embed.segments.weight, torch.cat([tables.token_type_embeddings.weight, third[None]]))
    assert torch.equal(embed.norm.weight, tables.LayerNorm.weight)
    words = text(60)
    layout = Layout(words.lengths)
    x = layout.pack(bert.eval().embeddings(input_ids=words.ids_BT, token_type_ids=words.segments_BT))
    out = model.transformer(Ragged(x, layout)).x_ND
    states, pooled = reference(bert, words)
    torch.testing.assert_close(out, states, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.pooler(out[layout.first_B(x.device)]), pooled, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("tied", "old"), [(True, False), (False, False), (True, True)])
@torch.no_grad()
def test_masked_word_head(tied: bool, old: bool, tmp_path: Path) -> None:
    """From safetensors, and from a pickle with the names of the first BERTs, in half precision."""
    theirs = BertForPreTraining(config(48, 2, 192, 60))
    theirs.cls.predictions.bias.data.normal_()
    saved(tmp_path, theirs)
    if old:
        state = {n: t.half() for n, t in theirs.state_dict().items()}
        names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, former in names.items():
            state = {n.replace(new, former): t for n, t in state.items()}
        (tmp_path / "model.safetensors").unlink()
        torch.save(state, tmp_path / "pytorch_model.bin")
    model, mlm = single_stream.shaken("uniter"), MLM(tied=tied)
    mlm.bind(model.spec, None)
    transform = FromBERT(str(tmp_path))
    transform(model, Around({"mlm": mlm}))
    assert transform.said == (
        f"UNITER starts as {tmp_path}: 60 of 60 words by number, 14 of 14 positions, 2 of 2 segments, "
        "transformer from layers 0 to 1, pooler, masked-word head"
    )
    words = text(60)
    layout = Layout(words.lengths)
    out = theirs.eval()(
        input_ids=words.ids_BT, attention_mask=layout.mask_BL(torch.device("cpu")).long(), token_type_ids=words.segments_BT
    ).prediction_logits
    expected = layout.pack(out)
    got = mlm.head(model(Batch(("a", "b", "c", "d"), torch.arange(4), words)).text.x_ND)
    tolerance = 2e-2 if old else 1e-5
    torch.testing.assert_close(got, expected, atol=tolerance * float(expected.abs().max()), rtol=0)
    assert mlm.head.tied == tied


@pytest.mark.parametrize(("kind", "objective"), [("visualbert", SIP()), ("oscar", TagContrast())])
@torch.no_grad()
def test_heads_of_text_pairs_start_as_that_of_the_next_sentence(kind: str, objective: SIP | TagContrast, tmp_path: Path) -> None:
    """BERT's row 0 is the next sentence, our row 1 a second text that belongs; heads of other kinds and sizes stay."""
    theirs, model = BertForPreTraining(config(48, 2, 192, 60)), single_stream.shaken(kind)
    theirs.cls.seq_relationship.bias.data.normal_()
    saved(tmp_path, theirs)
    others = {"itm": ITM(), "plus": TagContrast(classes=3)}
    objectives = {"pair": objective, **others}
    for one in objectives.values():
        one.bind(model.spec, None)
        tiny.shake(one, 5)
    kept = {name: {key: t.clone() for key, t in one.state_dict().items()} for name, one in objectives.items()}
    without = FromBERT(str(tmp_path), head=False)
    without(model, Around(objectives))
    assert all(torch.equal(objective.state_dict()[key], t) for key, t in kept["pair"].items()) and without.said.endswith(", pooler")
    transform = FromBERT(str(tmp_path))
    transform(model, Around(objectives))
    assert transform.said.endswith(", pooler, head of pair")
    words = text(60)
    mask = Layout(words.lengths).mask_BL(torch.device("cpu")).long()
    logits = theirs.eval()(input_ids=words.ids_BT, attention_mask=mask, token_type_ids=words.segments_BT).seq_relationship_logits
    got = objective.eval().head(model(Batch(("a", "b", "c", "d"), torch.arange(4), words)).pooled_BD)
    torch.testing.assert_close(got, logits.flip(1), atol=1e-5 * float(logits.abs().max()), rtol=0)
    assert torch.equal(objective.head.weight[MATCHED], theirs.cls.seq_relationship.weight[0])
    for name, one in others.items():
        assert all(torch.equal(one.state_dict()[key], t) for key, t in kept[name].items())
    fresh = tiny.shake(objective, 6)
    before = fresh.head.weight.clone()
    saved(tmp_path, BertModel(config(48, 2, 192, 60)))  # without heads
    transform(model, Around({"pair": fresh}))
    assert torch.equal(fresh.head.weight, before) and transform.said.endswith(", pooler")


@pytest.mark.parametrize(
    ("kind", "sizes"), [(RobertaForMaskedLM, RobertaConfig), (Data2VecTextForMaskedLM, Data2VecTextConfig)], ids=["roberta", "data2vec"]
)
@torch.no_grad()
def test_roberta_positions_begin_behind_padding(kind: type, sizes: type, tmp_path: Path) -> None:
    settings = sizes(
        vocab_size=60, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, max_position_embeddings=18,
        type_vocab_size=1, layer_norm_eps=1e-12, attn_implementation="eager",
    )  # fmt: skip
    theirs, model = kind(settings), single_stream.shaken("uniter")
    saved(tmp_path, theirs)
    mlm = MLM()
    mlm.bind(model.spec, None)
    FromBERT(str(tmp_path))(model, Around({"mlm": mlm}))
    words = text(60)._replace(segments_BT=None)
    layout = Layout(words.lengths)
    logits = theirs.eval()(input_ids=words.ids_BT, attention_mask=layout.mask_BL(torch.device("cpu")).long()).logits
    expected = layout.pack(logits)
    got = mlm.head(model(Batch(("a", "b", "c", "d"), torch.arange(4), words)).text.x_ND)
    torch.testing.assert_close(got, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


@torch.no_grad()
def test_another_tokenizer_keeps_what_it_has_in_common(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bert = BertModel(config(48, 2, 192, WORDS))
    saved(tmp_path, bert, TOKENS)
    table = bert.embeddings.word_embeddings.weight
    model = single_stream.shaken("uniter")  # 60 rows
    before = model.text.words.weight.clone()
    own = {"new": 0, "w4": 1, "w2": 2, "other": 3, "w29": 59}
    with caplog.at_level(logging.INFO, "mmpretrain"):
        FromBERT(str(tmp_path))(model, Around(tokens=own))
    assert "3 of its 5 tokens" in caplog.text and "set data.text.tokenizer to that folder" in caplog.text
    after = model.text.words.weight
    assert torch.equal(after[[1, 2, 59]], table[[4, 2, 29]])
    rest = [n for n in range(60) if n not in (1, 2, 59)]
    assert torch.equal(after[rest], before[rest])
    caplog.clear()
    FromBERT(str(tmp_path))(model, Around(tokens={token: n for n, token in enumerate(TOKENS)}))
    assert torch.equal(after[:WORDS], table) and torch.equal(after[WORDS:59], before[WORDS:59])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    with pytest.raises(ValueError, match=r"no token of the tokenizer is in .*data\.text\.tokenizer"):
        FromBERT(str(tmp_path))(model, Around(tokens={"x": 0}))


@torch.no_grad()
def test_without_a_vocabulary_rows_are_cut_by_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bert = BertModel(config(48, 2, 192, 90))
    saved(tmp_path, bert)
    model = single_stream.shaken("oscar")
    FromBERT(str(tmp_path))(model, Around(tokens={"a": 0}))
    assert torch.equal(model.text.words.weight, bert.embeddings.word_embeddings.weight[:60])
    assert "has 90 words, the model 60, and there is no vocabulary to compare" in caplog.text


def test_a_tokenizer_json_is_a_vocabulary(tmp_path: Path) -> None:
    bert = BertModel(config(48, 2, 192, WORDS))
    saved(tmp_path, bert, TOKENS[:-1])  # vocab.txt lacks what was added
    vocab = {token: n for n, token in enumerate(TOKENS[:-1])}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": [{"content": "[M]", "id": 29}]}))
    model = single_stream.shaken("uniter")
    FromBERT(str(tmp_path))(model, Around(tokens={"[M]": 7, "w3": 8}))
    assert torch.equal(model.text.words.weight[7], bert.embeddings.word_embeddings.weight[29])


def test_mistakes(tmp_path: Path) -> None:
    model = single_stream.shaken("uniter")
    with pytest.raises(ValueError, match="is no folder"):
        FromBERT(str(tmp_path / "gone"))(model)
    folder = saved(tmp_path / "narrow", BertModel(config()))
    with pytest.raises(ValueError, match=r"width of transformer is 48, that of .* 24 \(hidden_size\)"):
        FromBERT(str(folder))(model)
    folder = saved(tmp_path / "shallow", BertModel(config(48, 1, 192, 60)))
    with pytest.raises(ValueError, match=r"transformer have 2 blocks, .* 1 layers: lower depth"):
        FromBERT(str(folder))(model)
    folder = saved(tmp_path / "cut", BertModel(config(48, 1, 192, 60)))
    asked = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**asked, "num_hidden_layers": 2}))
    with pytest.raises(ValueError, match=r"cut has nothing for blocks\.1\."):
        FromBERT(str(folder))(model)
    narrow = MPNetConfig(vocab_size=60, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192)
    saved(tmp_path / "mpnet", MPNetModel(narrow))
    with pytest.raises(ValueError, match=r"mpnet has no embeddings\.token_type_embeddings\.weight; it is not a BERT"):
        FromBERT(str(tmp_path / "mpnet"))(model)
    for kind in (tiny.clip, tiny.vilt):
        with pytest.raises(ValueError, match=r"FromBERT: (CLIP has no part|transformer of ViLT is no encoder)"):
            FromBERT(str(folder))(kind())
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds none of model\.safetensors"):
        FromBERT(str(folder))(model)
    torch.save(nn.Linear(2, 2), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"was not opened, since that could run code.*torch\.save\(module\.state_dict\(\)"):
        FromBERT(str(folder))(model)
