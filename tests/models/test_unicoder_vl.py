"""Unicoder-VL against its formula on padded tensors with transformers' BERT encoder; without regions it is BERT."""

import pytest
import torch
from helpers import single_stream as parts
from helpers.tiny import shake
from torch import Tensor
from transformers import BertConfig, BertModel

from mmpretrain.models.unicoder_vl import UnicoderVL
from mmpretrain.types import Batch


def reference(model: UnicoderVL, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """LN(Linear(feature) + Linear(box of five)), with a segment where the model has one."""
    features, box, sides = parts.corners(batch.regions)
    five = torch.cat([box, sides[..., :1] * sides[..., 1:]], -1)
    total = parts.linear(features, model.regions.projection) + parts.linear(five, model.regions.box_projection)
    if model.region_segment is not None:
        total = total + model.text.segments.weight[model.region_segment]
    regions = parts.norm(total, model.regions.norm)
    return parts.padded_run(model, parts.norm(parts.words(model, batch.text), model.text.norm), regions, batch)


@pytest.mark.parametrize(("attention", "atol"), [("eager", 1e-5), ("sdpa", 1e-4)])
@pytest.mark.parametrize("segment", [None, 1])
def test_equals_the_padded_reference(segment: int | None, attention: str, atol: float) -> None:
    model, batch = shake(parts.unicoder_vl(attention, segment)), parts.batch()
    parts.check(model, batch, reference(model, batch), atol)


def test_without_regions_it_is_bert() -> None:
    """transformers' BertModel, embeddings and pooler included, with padding and two segments."""
    model, batch = parts.shaken("unicoder_vl"), parts.batch()._replace(regions=None)
    sizes = {"hidden_size": parts.WIDTH, "num_hidden_layers": parts.DEPTH, "num_attention_heads": parts.HEADS}
    config = BertConfig(vocab_size=parts.WORDS, max_position_embeddings=14, intermediate_size=4 * parts.WIDTH, **sizes)
    config._attn_implementation = "eager"
    bert = BertModel(config).eval()
    tables = {"word_embeddings": model.text.words, "position_embeddings": model.text.positions, "LayerNorm": model.text.norm}
    for name, part in {**tables, "token_type_embeddings": model.text.segments}.items():
        getattr(bert.embeddings, name).load_state_dict(part.state_dict())
    bert.encoder.load_state_dict(parts.bert_encoder(model.transformer).state_dict())
    bert.pooler.dense.load_state_dict(model.pooler.dense.state_dict())
    out = model(batch)
    mask = out.text.layout.mask_BL(torch.device("cpu"))
    theirs = bert(batch.text.ids_BT, attention_mask=mask.long(), token_type_ids=batch.text.segments_BT)
    torch.testing.assert_close(out.text.x_ND, theirs.last_hidden_state[mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.pooled_BD, theirs.pooler_output, atol=1e-5, rtol=0)


def test_the_segment_must_exist() -> None:
    model = parts.unicoder_vl()
    with pytest.raises(ValueError, match="row 2 of the text's segment table, which has 2"):
        UnicoderVL(model.text, model.regions, model.transformer, region_segment=2)
