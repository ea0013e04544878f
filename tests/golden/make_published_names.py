"""Records the names and shapes of the tensors in pre-training checkpoints of released code, in the sizes of the tests.

Run from the folder ``tests``, once for each system, with a checkout of its repository:

    python golden/make_published_names.py lxmert CHECKOUT_OF_lxmert golden/published_names.json
    python golden/make_published_names.py vilbert CHECKOUT_OF_vilbert-multi-task golden/published_names.json
    python golden/make_published_names.py uniter CHECKOUT_OF_UNITER golden/published_names.json
    python golden/make_published_names.py villa CHECKOUT_OF_VILLA golden/published_names.json
    python golden/make_published_names.py interbert CHECKOUT_OF_InterBERT golden/published_names.json
    python golden/make_published_names.py vlbert CHECKOUT_OF_VL-BERT golden/published_names.json
    python golden/make_published_names.py vlbert_pixels CHECKOUT_OF_VL-BERT golden/published_names.json
    python golden/make_published_names.py oscar CHECKOUT_OF_Oscar golden/published_names.json
    python golden/make_published_names.py oscar_plus CHECKOUT_OF_Oscar golden/published_names.json

Oscar's stands on pytorch-transformers 1.0.0, which must be importable. Empty modules stand in for packages that only downloads, logging and
speed need. Nothing of theirs is kept but names and shapes.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import make_two_streams
from helpers.official import INTERBERT, VILBERT

CLASSES, ATTRIBUTES, ANSWERS = 7, 5, 9


def stand_in(*names: str, **attributes: Any) -> None:
    for name in names:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(attributes)


def lxmert() -> torch.nn.Module:
    code = importlib.import_module("lxrt.modeling")
    sizes = code.VISUAL_CONFIG
    sizes.l_layers, sizes.r_layers, sizes.x_layers, sizes.visual_feat_dim = 3, 2, 2, 10
    sizes.visual_loss_config.update(obj=(CLASSES, "ce", (-1,), 1), attr=(ATTRIBUTES, "ce", (-1,), 1), feat=(10, "l2", (-1, 10), 1))
    config = code.BertConfig(30, hidden_size=24, num_attention_heads=4, intermediate_size=40, max_position_embeddings=12)
    return code.LXRTPretraining(config, visual_losses="obj,attr,feat", num_answers=ANSWERS)


def two_streams(system: str) -> torch.nn.Module:
    sizes = VILBERT if system == "vilbert" else INTERBERT
    code = importlib.import_module("vilbert.vilbert" if system == "vilbert" else "bertmodel.modules")
    config = code.BertConfig(sizes.vocab, num_hidden_layers=sizes.text_depth, **make_two_streams.options(sizes))
    config.v_target_size = CLASSES
    if system == "vilbert":
        config.visual_target = 0
        return code.BertForMultiModalPreTraining(config)
    config.num_hidden_layers, config.t_num_hidden_layers = sizes.joint_depth, sizes.text_depth
    return code.InterBertForMultiModalPreTraining(config)


BERT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192, "max_position_embeddings": 14}


def uniter() -> torch.nn.Module:
    stand_in("apex", "apex.normalization")
    stand_in("apex.normalization.fused_layer_norm", FusedLayerNorm=torch.nn.LayerNorm)
    config = importlib.import_module("model.model").UniterConfig(60, **BERT)
    return importlib.import_module("model.pretrain").UniterForPretraining(config, 12, CLASSES)


def oscar(plus: bool) -> torch.nn.Module:
    stand_in("regex", "sentencepiece")
    stand_in("oscar.utils.cbs", ConstrainedBeamSearch=None, select_best_beam_with_constraints=None)
    del sys.modules["pytorch_transformers"]  # the empty one
    library = importlib.import_module("pytorch_transformers")
    stand_in("transformers", __path__=[], pytorch_transformers=library)
    sys.modules |= {f"transformers.{name}": one for name, one in list(sys.modules.items()) if name.startswith("pytorch_transformers")}
    config = sys.modules["pytorch_transformers.modeling_bert"].BertConfig(60, **BERT)
    config.img_feature_dim, config.img_feature_type = 12 + 6, "faster_r-cnn"
    config.use_img_layernorm, config.img_layer_norm_eps, config.num_contrast_classes = plus, 1e-12, 3 if plus else 2
    return importlib.import_module("oscar.modeling.modeling_bert").BertImgForPreTraining(config)


def released(system: str, checkout: str) -> torch.nn.Module:
    """The model of the released pre-training."""
    make_two_streams.stand_ins()
    sys.path.insert(0, f"{checkout}/src" if system == "lxmert" else checkout)
    if system in ("vlbert", "vlbert_pixels"):
        return importlib.import_module("golden.make_vlbert").build(Path(checkout), system == "vlbert")
    makers = {"lxmert": lxmert, "uniter": uniter, "villa": uniter, "oscar": lambda: oscar(False), "oscar_plus": lambda: oscar(True)}
    return makers[system]() if system in makers else two_streams(system)


def main(system: str, checkout: str, out: str) -> None:
    path = Path(out)
    known = json.loads(path.read_text()) if path.exists() else {}
    known[system] = {name: list(t.shape) for name, t in released(system, str(Path(checkout).resolve())).state_dict().items()}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(known[name])}" for name in sorted(known))
    path.write_text("{\n" + lines + "\n}\n")
    print(system, len(known[system]))


if __name__ == "__main__":
    main(*sys.argv[1:])
