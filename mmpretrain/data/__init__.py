"""From shards to batches: offset index, epoch order as a pure function, safe decoding, tokenizers, transforms, collation.

Nothing heavy is imported here; take what you need from the modules (``mmpretrain.data.module.ShardData`` is the entry).
"""
