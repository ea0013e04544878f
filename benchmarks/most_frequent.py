"""What always guessing the most frequent target would reach: its share among the targets of a recipe's first validation set, by objective.

    python benchmarks/most_frequent.py --config ernie-vil.yaml

Takes the options of ``mmpretrain fit``. Masks are those of a validation. Objectives that predict tokens are counted (masked words, nodes).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable

from mmpretrain.cli.train import prepare
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.types import Batch


def counted(root: Pretraining, batches: Iterable[Batch]) -> dict[str, Counter[int]]:
    """How often each token is a target of each objective."""
    found: dict[str, Counter[int]] = {}
    for batch in batches:
        for view in root.corrupt(batch).values():
            for name, target in view.targets.items():
                if hasattr(target, "labels_R"):
                    found.setdefault(name, Counter()).update(target.labels_R.tolist())
    return found


def main(words: list[str]) -> None:
    """See the docstring of the module."""
    cli = prepare("fit", [*words, "--loggers", "[]"])
    module, data = cli.model, cli.datamodule
    cli.discard()  # nothing is trained: no folder of a run
    data.configure(preparers=module.preparers(), sources=module.objective_sources)
    data.setup("fit")
    module.root.bind(data.vocabulary)
    loaders = data.val_dataloader()
    for name, tokens in counted(module.root, loaders[0] if isinstance(loaders, list) else loaders).items():
        (token, times), total = tokens.most_common(1)[0], tokens.total()
        print(f"{name}: {100 * times / total:.1f} % of {total:,} targets are {data.tokenizer.decode([token])!r}")


if __name__ == "__main__":
    main(sys.argv[1:])
