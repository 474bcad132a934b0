"""From a dataset to packed sequences: which cells exist, in which order, in which pack.

How a trainer uses it::

    from trainer.data import Batch, DataOptions, Loader, check_vocabulary

    dataset = pipeline.open_dataset("grids/")
    check_vocabulary(dataset, embedding_rows)                       # raises UserError
    loader = Loader(dataset, DataOptions(cells=5120, packs_per_step=8), rank=0, world_size=2)
    loader.streams        # tuple of the chosen streams: .name, .kind, .loss, .silence_loss, in the order of batch.streams
    loader.visibility     # bool [C, C], row = who reads; None where all read all: what build_index takes
    loader.silence_id     # token of silent cells and of padding
    loader.steps(epoch)   # number of steps of an epoch; the same for every rank
    loader.packing(epoch) # conversations, packs, steps, cells, and the share of padding; also logged
    loader.dropped        # conversations that were too long, where options.too_long is 'drop'
    loader.load_state_dict(state)                                   # optional: go on from there
    for batches in loader:                                          # endless, epoch after epoch, prefetched
        ...               # list[Batch]: the packs_per_step / world_size packs of this rank
        loader.state_dict()                                         # counts this step as done
    held_out = Loader(dataset, options, split="validation")         # rate 1: every silent cell that is trained
    for batches in held_out.epoch(0):                               # one epoch, from its first step; leaves the state alone
        ...

Needs torch only where ``with_index=True`` is asked for. Errors are :class:`pipeline.errors.UserError`.
"""

from trainer.data.batch import NO_TARGET, Batch, Kind
from trainer.data.loader import Loader, Packing
from trainer.data.options import DataOptions
from trainer.data.streams import Stream
from trainer.data.vocabulary import check_vocabulary

__all__ = ["NO_TARGET", "Batch", "DataOptions", "Kind", "Loader", "Packing", "Stream", "check_vocabulary"]
