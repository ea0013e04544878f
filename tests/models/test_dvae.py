"""The dVAE: size, a plain reference, draws by the keys of samples, codes and back, precision, mistakes."""

from __future__ import annotations

import pytest
import torch
from helpers import plain_dvae
from helpers.plain_dvae import batch, rows, small

from mmpretrain.models.dvae import DVAE, pictures
from mmpretrain.nn.dvae import map_pixels, one_hot, unit_pixels
from mmpretrain.nn.layers import Conv2d
from mmpretrain.weights.dvae import to_openai


def test_parameter_counts_of_the_release():
    with torch.device("meta"):
        model = DVAE()
    count = lambda part: sum(p.numel() for p in part.parameters())
    assert (count(model.encoder), count(model.decoder)) == (53_786_240, 43_829_766)
    assert model.spec.codes == 8192 and model.spec.code_grid == (32, 32) and len(model.blocks()) == 16


@pytest.mark.parametrize(("widths", "blocks"), [((8, 12, 16), 2), ((8, 8), 1), ((4, 8, 16, 32), 1), ((8,), 3)])
def test_encoder_and_decoder_equal_the_plain_reference(widths, blocks):
    model = small(widths=widths, blocks=blocks)
    parts, x = to_openai(model), torch.rand(2, 3, 16, 24)
    logits = model.encoder(map_pixels(x))
    torch.testing.assert_close(logits, plain_dvae.encode(parts.encoder, map_pixels(x)), atol=1e-5, rtol=1e-5)
    soft = logits.softmax(1)
    output = model.decoder(soft)
    assert output.shape == (2, 6, 16, 24) and logits.shape[2:] == (16 // model.factor, 24 // model.factor)
    torch.testing.assert_close(output, plain_dvae.decode(parts.decoder, soft), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sample", ["relaxed", "straight_through", "nearest"])
@pytest.mark.parametrize("training", [False, True])
def test_company_and_order_do_not_matter(sample, training):
    model, given = small(sample).train(training), batch()
    whole = model(given)
    for order in ([2, 0, 4, 1, 3], [1], [3, 2]):
        part = model(rows(given, order))
        for place, i in enumerate(order):
            torch.testing.assert_close(part.output_BCHW[place], whole.output_BCHW[i], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(part.logits_BKhw[place], whole.logits_BKhw[i], atol=1e-5, rtol=1e-5)


def test_training_draws_by_key_and_evaluation_takes_the_most_probable():
    model, given = small().train(), batch()
    first = model(given)
    torch.manual_seed(5)
    assert torch.equal(first.output_BCHW, model(given).output_BCHW)
    other = model(given._replace(draw_keys_B=given.draw_keys_B + 1))
    assert torch.equal(first.logits_BKhw, other.logits_BKhw) and not torch.allclose(first.code_BKhw, other.code_BKhw)
    model.eval()
    hard = model(given)
    assert torch.equal(hard.code_BKhw, one_hot(hard.logits_BKhw.argmax(1), model.codes))
    torch.testing.assert_close(hard.output_BCHW, model.decoder(hard.code_BKhw), atol=1e-6, rtol=1e-5)
    model.train().temperature = 1e-3
    near = model(given).code_BKhw
    assert near.amax(1).mean() > 0.95 and near.requires_grad


@pytest.mark.parametrize("sample", ["relaxed", "nearest"])
def test_codes_and_back_are_the_forward_of_evaluation(sample):
    model, given = small(sample), batch()
    found = model(given)
    ids = model.encode(unit_pixels(given.image))
    assert ids.dtype == torch.int64 and ids.shape == (5, 2, 2) and torch.equal(ids, found.logits_BKhw.argmax(1))
    assert ids.unique().numel() > 1
    back = model.decode(ids)
    torch.testing.assert_close(back, pictures(found.output_BCHW), atol=1e-5, rtol=1e-5)
    assert back.min() >= 0 and back.max() <= 1
    torch.testing.assert_close(pictures(torch.zeros(1, 6, 1, 1)), torch.full((1, 3, 1, 1), 0.5))


def test_other_sizes_run_and_impossible_ones_are_refused():
    model = small()
    assert model.encode(torch.rand(1, 3, 12, 20)).shape == (1, 3, 5)
    with pytest.raises(ValueError, match=r"6 x 8 pixels are no multiples of 4: set data\.image\.size"):
        model.encode(torch.rand(1, 3, 6, 8))


def test_first_and_last_convolution_between_the_halves_are_fp32_under_autocast():
    model, given = small().train(), batch()
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv2d):
            module.register_forward_hook(lambda module, args, out, name=name: seen.__setitem__(name, out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(given)
    wide = {name for name, dtype in seen.items() if dtype == torch.float32}
    assert wide == {"encoder.output", "decoder.input"} and found.logits_BKhw.dtype == found.code_BKhw.dtype == torch.float32
    torch.testing.assert_close(found.logits_BKhw, model(given).logits_BKhw, atol=0.5, rtol=0.1)


@pytest.mark.parametrize("sample", ["relaxed", "straight_through", "nearest"])
def test_every_parameter_can_be_born_on_meta_and_is_trained(sample):
    with torch.device("meta"):
        model = DVAE((8, 12), 1, 6, 5, 8, sample)
    model.to_empty(device="cpu")
    for module in model.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        assert not own or hasattr(module, "reset_parameters"), type(module)
        if own:
            module.reset_parameters()
    model.train()(batch()).output_BCHW.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (6, 8)}, r"widths=\[6, 8\] must be multiples of 4"),
        ({"blocks": 0}, "blocks=0 at least 1"),
        ({"codes": 1}, "codes=1 must be at least 2"),
        ({"temperature": 0.0}, "temperature=0.0 positive"),
        ({"sample": "hard"}, "choose one of relaxed, straight_through, nearest"),
        ({"image_size": 12}, "image_size=12 must be a multiple of 8, which 4 groups"),
    ],
)
def test_impossible_options_are_refused(options, message):
    sizes = {"widths": (8, 8, 8, 8), "blocks": 1, "codes": 4, "code_width": 4, "image_size": 16}
    with pytest.raises(ValueError, match=message):
        DVAE(**{**sizes, **options})


def test_other_kinds_and_batches_without_pictures_are_refused():
    model, given = small(), batch()
    with pytest.raises(ValueError, match="'coded', not 'fused'"):
        model(given, "fused")
    with pytest.raises(ValueError, match="needs a batch with pictures"):
        model(given._replace(image=None))
