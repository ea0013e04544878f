"""Records what the released encoder and decoder of DALL-E's dVAE return for weights and inputs in closed form.

Run from the folder ``tests``, with a checkout of the repository (its package needs attrs):

    python golden/make_dvae.py CHECKOUT golden/dvae_states.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers import released_dvae


def main() -> None:
    """The smallest model that the released classes build, and the counts of the one that was published."""
    sys.path.insert(0, sys.argv[1])
    from dall_e.decoder import Decoder
    from dall_e.encoder import Encoder
    from dall_e.utils import map_pixels, unmap_pixels

    own = {"n_hid": released_dvae.WIDTH, "n_blk_per_group": released_dvae.BLOCKS, "vocab_size": released_dvae.CODES}
    encoder, decoder = Encoder(**own), Decoder(**own, n_init=released_dvae.CODE_WIDTH)
    encoder.load_state_dict(released_dvae.weights("encoder", encoder.state_dict()))
    decoder.load_state_dict(released_dvae.weights("decoder", decoder.state_dict()))
    pixels = released_dvae.pixels()
    with torch.no_grad():
        logits = encoder(map_pixels(pixels))
        ids = logits.argmax(1)
        output = decoder(torch.nn.functional.one_hot(ids, released_dvae.CODES).permute(0, 3, 1, 2).float())
        rebuilt = unmap_pixels(torch.sigmoid(output[:, :3]))
    count = lambda module: sum(p.numel() for p in module.parameters())
    found = {"logits": logits[:, ::4].numpy(), "ids": ids.numpy().astype(np.int16), "output": output.numpy(), "rebuilt": rebuilt.numpy()}
    np.savez_compressed(sys.argv[2], **found, counts=np.array([count(Encoder()), count(Decoder())]))


if __name__ == "__main__":
    main()
