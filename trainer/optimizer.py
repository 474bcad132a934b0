"""AdamW over three groups of parameters, and the learning rate of every step."""

from __future__ import annotations

import math

import torch

from trainer.config import OptimizerOptions
from trainer.model.streams import StreamModel


def make_optimizer(model: StreamModel, options: OptimizerOptions) -> torch.optim.AdamW:
    """AdamW for everything that wants a gradient. Every group carries its full rate as ``peak``."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    streams: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            where = streams if name == "vectors" else matrices if parameter.ndim >= 2 else others
            where.append(parameter)
    groups = [
        {"params": matrices, "peak": options.learning_rate, "weight_decay": options.weight_decay},
        {"params": others, "peak": options.learning_rate, "weight_decay": 0.0},
        {"params": streams, "peak": options.stream_learning_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=options.learning_rate,
        betas=(options.beta1, options.beta2),
        eps=options.epsilon,
        fused=model.vectors.device.type in ("cpu", "cuda"),
    )


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Give every group this share of its full rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


def rate_share(step: int, last: int, options: OptimizerOptions) -> float:
    """The share of the full learning rate at a step, counted from 0, of ``last`` steps."""
    if step < options.warmup_steps:
        return (step + 1) / (options.warmup_steps + 1)
    low = options.final_share
    match options.schedule:
        case "cosine":
            done = (step - options.warmup_steps + 1) / max(1, last - options.warmup_steps)
            return low + (1 - low) * (1 + math.cos(math.pi * min(1.0, done))) / 2
        case "cooldown":
            left = (last - step - 1) / max(1, options.cooldown_steps)
            return low + (1 - low) * max(0.0, min(1.0, left))
        case _:
            return 1.0
