"""One process or several: who this one is, sums over all, and sharding with FSDP2."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from pipeline.errors import UserError
from trainer.model.attention import decoder_layers
from trainer.model.streams import StreamModel

#: How long a process that must end waits for the first one to say why.
_PATIENCE = timedelta(seconds=5)


class Said(Exception):
    """A user's error that all processes met alike, in one that leaves it to the first to say so."""


@dataclass(frozen=True)
class World:
    """This process among all of a run."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes of a CPU tensor."""
        if self.size == 1:
            return values
        moved = values.to(self.device)
        dist.all_reduce(moved)
        return moved.cpu()

    def all(self, values: list[int]) -> list[int]:
        """The values of all processes, one process after the other."""
        if self.size == 1:
            return values
        parts: list[list[int]] = [[]] * self.size
        dist.all_gather_object(parts, values)
        return [value for part in parts for value in part]

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Raise Said in place of a UserError in processes that are not the first, where the first met the same."""
        try:
            yield
        except UserError as error:
            if self.size > 1 and self._said(str(error)):
                raise Said from None
            raise

    def _said(self, message: str) -> bool:
        """Whether the first process says this. No collective: others may be anywhere."""
        store = dist.distributed_c10d._get_default_store()
        if self.first:
            store.set("error", message)
            return False
        try:
            store.wait(["error"], _PATIENCE)
            return bool(store.get("error").decode() == message)
        except RuntimeError:  # it is about something else, or has gone
            return False

    def stop(self) -> None:
        """Take leave of the others."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def start(device: str | None = None) -> World:
    """Find out who this process is, from what ``torchrun`` says; alone without it.

    ``device``: ``cpu``, ``cuda`` …; None: a GPU where there is one. Raises UserError, or Said beside a process of the same
    machine that does.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    try:
        place = _place(device or ("cuda" if torch.cuda.is_available() else "cpu"), local, size)
    except UserError:
        if local:
            raise Said from None
        raise
    if size > 1:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    return World(rank, size, place)


def _place(kind: str, local: int, size: int) -> torch.device:
    """The device of the process with this number on its machine, ready for use."""
    try:
        place = torch.device(kind)
    except RuntimeError:
        raise UserError(f"--device {kind}: no such device; give cpu or cuda") from None
    if place.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {kind}: torch finds no GPU; --device cpu trains a small model")
        if size > 1 or place.index is None:
            here, found = int(os.environ.get("LOCAL_WORLD_SIZE", str(size))), torch.cuda.device_count()
            if here > found:  # all processes find that
                raise UserError(f"{here} processes, but torch finds {found} GPUs; start one for each")
            place = torch.device("cuda", local)
    try:
        torch.zeros(1, device=place).item()
        if place.type == "cuda":
            torch.cuda.set_device(place)
    except (RuntimeError, AssertionError, ImportError) as error:  # a device that torch knows, and does not have
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise UserError(f"--device {kind}: this torch cannot use it ({reason}); give cpu or cuda") from None
    return place


def shard(model: StreamModel, world: World, bf16: bool) -> None:
    """Spread parameters, gradients and optimiser state over all processes: one group per layer, one for the rest.

    The embeddings, tied or not, are in the group of the whole model, which computes the loss inside its forward.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    # Inputs are not cast: the weights of the targets would be among them.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for layer in decoder_layers(model.backbone):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
