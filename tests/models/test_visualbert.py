"""VisualBERT equals transformers' VisualBertForPreTraining with visual type 0, padding in both modalities."""

import pytest
import torch
from helpers import single_stream as parts
from helpers.tiny import shake
from transformers import VisualBertConfig, VisualBertForPreTraining

from mmpretrain.models.visualbert import VisualBERT
from mmpretrain.nn.heads import VocabularyHead
from mmpretrain.nn.ragged import Layout


def twin(model: VisualBERT) -> VisualBertForPreTraining:
    """Theirs with the weights of ours; the heads are its own."""
    config = VisualBertConfig(
        vocab_size=parts.WORDS,
        hidden_size=parts.WIDTH,
        visual_embedding_dim=parts.FEATURES,
        num_hidden_layers=parts.DEPTH,
        num_attention_heads=parts.HEADS,
        intermediate_size=4 * parts.WIDTH,
        max_position_embeddings=14,
    )
    theirs = shake(VisualBertForPreTraining(config), seed=3)
    bert, text, regions = theirs.visual_bert, model.text, model.regions
    pairs = {
        "word_embeddings": text.words,
        "position_embeddings": text.positions,
        "token_type_embeddings": text.segments,
        "LayerNorm": model.norm,
        "visual_projection": regions.projection,
        "visual_position_embeddings": regions.positions,
        "visual_token_type_embeddings": regions.types,
    }
    for name, part in pairs.items():
        getattr(bert.embeddings, name).load_state_dict(part.state_dict())
    bert.encoder.load_state_dict(parts.bert_encoder(model.transformer).state_dict())
    bert.pooler.dense.load_state_dict(model.pooler.dense.state_dict())
    theirs.tie_weights()
    return theirs


@pytest.mark.parametrize(("attention", "atol"), [("eager", 1e-5), ("sdpa", 1e-4)])
def test_equals_transformers(attention: str, atol: float) -> None:
    model, batch = parts.shaken("visualbert", attention), parts.batch()
    theirs = twin(model)
    text, regions = Layout(batch.text.lengths), Layout(batch.regions.lengths)
    here = torch.device("cpu")
    real = regions.mask_BL(here)
    features = regions.pad(batch.regions.features_NF, 3.0)  # what pads the regions is no zero
    arguments = {
        "input_ids": batch.text.ids_BT,
        "attention_mask": text.mask_BL(here).long(),
        "token_type_ids": batch.text.segments_BT,
        "visual_embeds": features,
        "visual_attention_mask": real.float(),
        "visual_token_type_ids": torch.zeros(real.shape, dtype=torch.int64),
    }
    states = theirs.visual_bert(**arguments)
    hidden = states.last_hidden_state
    parts.check(
        model, batch, (text.pack(hidden[:, : text.max_len]), regions.pack(hidden[:, text.max_len :]), states.pooler_output), atol
    )
    head = VocabularyHead(parts.WIDTH, parts.WORDS, model.text.words)
    predictions = theirs.cls.predictions
    head.dense.load_state_dict(predictions.transform.dense.state_dict())
    head.norm.load_state_dict(predictions.transform.LayerNorm.state_dict())
    with torch.no_grad():
        head.bias.copy_(predictions.decoder.bias)
    out, logits = model(batch), theirs(**arguments)
    expected = text.pack(logits.prediction_logits[:, : text.max_len])
    torch.testing.assert_close(head(out.text.x_ND), expected, atol=atol * expected.abs().max().item(), rtol=0)
    match = parts.linear(out.pooled_BD, theirs.cls.seq_relationship)
    expected = logits.seq_relationship_logits
    torch.testing.assert_close(match, expected, atol=atol * expected.abs().max().item(), rtol=0)
    arguments["visual_token_type_ids"] = torch.ones(real.shape, dtype=torch.int64)  # their default
    assert (theirs.visual_bert(**arguments).pooler_output - states.pooler_output).abs().max() > 1e-2


def test_one_row_of_its_visual_tables_is_read() -> None:
    model, batch = parts.shaken("visualbert"), parts.batch()
    model(batch).pooled_BD.sum().backward()
    for table in (model.regions.positions, model.regions.types):
        assert table.weight.grad.abs().amax(1).nonzero().flatten().tolist() == [0]


def test_a_frozen_pooler_and_norms_of_its_own() -> None:
    model = parts.visualbert()
    frozen = VisualBERT(model.text, model.regions, model.transformer, frozen_pooler=True)
    assert {name for name, p in frozen.named_parameters() if not p.requires_grad} == {"pooler.dense.weight", "pooler.dense.bias"}
    frozen(parts.batch()).pooled_BD.sum().backward()
    assert frozen.text.words.weight.grad.abs().max() > 0 and frozen.pooler.dense.weight.grad is None
    with pytest.raises(ValueError, match="set norm_eps of text to null"):
        VisualBERT(parts.oscar().text, model.regions, model.transformer)
    with pytest.raises(ValueError, match="set norm_eps of regions to null"):
        VisualBERT(model.text, parts.oscar_plus().regions, model.transformer)


def test_dropout_follows_the_shared_norm() -> None:
    model = parts.visualbert()
    dropping = VisualBERT(model.text, model.regions, model.transformer, dropout=0.5).train()
    text, regions, _ = dropping.embed(parts.batch())
    for part in (text, regions):
        assert 0.3 < (part.x_ND == 0).float().mean() < 0.7
