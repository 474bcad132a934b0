"""One step against the same step written out: whole logits, torch's cross-entropy, AdamW by its formula."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import decoder, grids
from torch.nn.functional import cross_entropy

from pipeline.errors import UserError
from trainer.config import Config, ModelOptions, OptimizerOptions
from trainer.data import NO_TARGET, Batch, DataOptions, Kind
from trainer.distributed import World
from trainer.model.streams import StreamModel
from trainer.optimizer import make_optimizer
from trainer.step import Measured, Stepper

STREAMS = 3
Gradients = dict[str, torch.Tensor]

# Far from every default, so that none can stand in for another.
OPTIONS = OptimizerOptions(
    learning_rate=2e-3, stream_learning_rate=7e-3, beta1=0.6, beta2=0.8, epsilon=1e-3, weight_decay=0.2, clip=0.0
)


def pack(seed: int, share: float, weight: float) -> Batch:
    """Two conversations; this share of the cells predicts something, at weights around ``weight``."""
    rng = np.random.default_rng(seed)
    cells = grids(seed, (7, 4), STREAMS)
    trained = rng.random(len(cells.ids)) < share
    weights = np.where(trained, weight * rng.uniform(0.5, 1.5, trained.size), 0).astype(np.float32)
    return Batch(
        cells.ids, cells.streams, cells.rows, cells.rows, cells.docs, cells.silent,
        np.where(trained, rng.integers(0, 64, trained.size), NO_TARGET), weights,
        np.where(trained, Kind.SPEECH, Kind.NONE).astype(np.int8), 2, np.arange(2), cells.index(None),
    )  # fmt: skip


def packs(seed: int = 0) -> list[Batch]:
    """Of total weights far apart, and one that trains nothing."""
    return [pack(seed, 0.9, 3.0), pack(seed + 1, 0.1, 0.2), pack(seed + 2, 0.0, 1.0), pack(seed + 3, 0.5, 1.0)]


def model_of(**options: Any) -> StreamModel:
    """The same for every test; vectors as large as embeddings, so that they matter."""
    model = StreamModel(decoder("qwen3", tie_word_embeddings=True, **options), STREAMS)
    torch.nn.init.normal_(model.vectors, generator=torch.Generator().manual_seed(1))
    return model.train()


def stepper_of(
    model: StreamModel, options: OptimizerOptions, seed: int = 0, optimizer: torch.optim.Optimizer | None = None
) -> Stepper:
    settings = Config(
        dataset="",
        data=DataOptions(cells=64, packs_per_step=4),
        model=ModelOptions(path="", precision="fp32"),
        optimizer=options,
        seed=seed,
    )
    optimizer = optimizer or make_optimizer(model, options)
    return Stepper(settings, World(0, 1, torch.device("cpu")), model, optimizer, STREAMS)


def loss_of(model: StreamModel, batches: list[Batch]) -> torch.Tensor:
    """Σ w · l / Σ w over all cells of all packs, from whole logits."""
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        inputs = [torch.as_tensor(x, dtype=torch.long) for x in (batch.ids, batch.streams, batch.positions)]
        logits = model.logits(model.hidden(*inputs, batch.attention))
        each = cross_entropy(logits, torch.as_tensor(batch.targets).long(), reduction="none")
        total = total + (torch.as_tensor(batch.weights) * each).sum(dtype=torch.float64)
    return total / sum(float(batch.weights.sum()) for batch in batches)


def gradients_of(model: StreamModel, batches: list[Batch]) -> tuple[float, Gradients, float]:
    """Loss, gradients by torch alone, and the norm of all."""
    loss = loss_of(model, batches)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    return float(loss.detach()), gradients, math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))


def parameters_of(model: StreamModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def adamw(
    parameters: dict[str, torch.Tensor], steps: list[tuple[Gradients, float]], options: OptimizerOptions
) -> dict[str, torch.Tensor]:
    """Parameters after steps with these gradients, at these shares of the rates. In float64."""
    after = {}
    for name, start in parameters.items():
        p, m, v = start.double(), torch.zeros(()), torch.zeros(())
        peak = options.stream_learning_rate if name == "vectors" else options.learning_rate
        decay = options.weight_decay if p.ndim >= 2 and name != "vectors" else 0.0
        for number, (gradients, share) in enumerate(steps, 1):
            g = gradients[name].double()
            m, v = options.beta1 * m + (1 - options.beta1) * g, options.beta2 * v + (1 - options.beta2) * g.square()
            mean, square = m / (1 - options.beta1**number), v / (1 - options.beta2**number)
            p = p * (1 - share * peak * decay) - share * peak * mean / (square.sqrt() + options.epsilon)
        after[name] = p
    return after


def assert_moved_alike(model: StreamModel, before: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Every parameter went where it should, to a thousandth of the way and float32's rounding of the parameter."""
    for name, now in parameters_of(model).items():
        way = (expected[name] - before[name]).norm()
        assert way > 0, name
        assert (now - expected[name]).norm() < 1e-3 * way + 1e-7 * now.norm(), name


def test_a_step_descends_the_weighted_mean_over_all_packs() -> None:
    """Not a mean of the packs' means: their weights are 100 to 1."""
    model, batches = model_of(), packs()
    weights = [float(batch.weights.sum()) for batch in batches]
    assert max(weights) > 100 * weights[1] > 0 and weights[2] == 0
    before = parameters_of(model)
    loss, gradients, norm = gradients_of(model, batches)
    measured = stepper_of(model, OPTIONS).step(0, batches, 1.0)
    assert measured.norm == pytest.approx(norm, rel=1e-4)
    assert measured.tally.means([])["loss"] == pytest.approx(loss, rel=1e-5)
    assert_moved_alike(model, before, adamw(before, [(gradients, 1.0)], OPTIONS))


def test_steps_are_adamw_with_the_options_given() -> None:
    """Betas and epsilon, the stream vectors' own rate, the share of the rates, decay of matrices alone."""
    model = model_of()
    stepper = stepper_of(model, OPTIONS)
    before = parameters_of(model)
    kinds = {(p.ndim, name == "vectors") for name, p in before.items()}
    assert kinds == {(1, False), (2, False), (2, True)}  # norms, matrices, stream vectors
    steps: list[tuple[Gradients, float]] = []
    for number, share in enumerate((0.25, 1.0, 0.5)):
        batches = packs(10 * number)
        steps.append((gradients_of(model, batches)[1], share))
        stepper.step(number, batches, share)
        assert all(p.grad is None for p in model.parameters())
    assert_moved_alike(model, before, adamw(before, steps, OPTIONS))


@pytest.mark.parametrize("part", [0.1, 10.0, None])
def test_the_gradient_is_clipped_as_a_whole(part: float | None) -> None:
    """To ``clip`` where its norm is larger, and not at all where it is smaller or ``clip`` is 0; reported as it was."""
    model, batches = model_of(), packs()
    before = parameters_of(model)
    _, gradients, norm = gradients_of(model, batches)
    options = replace(OPTIONS, clip=0.0 if part is None else part * norm)
    measured = stepper_of(model, options).step(0, batches, 1.0)
    assert measured.norm == pytest.approx(norm, rel=1e-4)
    shrunk = {name: g * (0.1 if part == 0.1 else 1.0) for name, g in gradients.items()}
    assert_moved_alike(model, before, adamw(before, [(shrunk, 1.0)], options))


def test_packs_that_train_nothing_change_nothing_without_decay() -> None:
    model = model_of()
    before = parameters_of(model)
    measured = stepper_of(model, replace(OPTIONS, weight_decay=0.0)).step(0, [pack(0, 0.0, 1.0)] * 2, 1.0)
    assert measured.norm == 0 and measured.tally.means([])["loss"] is None
    assert all(torch.equal(p, before[name]) for name, p in parameters_of(model).items())


def with_dropout() -> StreamModel:
    """Dropout on the embeddings and on what every layer's MLP adds, as some decoders have it."""
    model = model_of()

    def drop(module: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(output, 0.3, module.training)

    model.backbone.get_input_embeddings().register_forward_hook(drop)
    for layer in model.backbone.get_decoder().layers:
        layer.mlp.register_forward_hook(drop)
    return model


def losses(model: StreamModel, steps: range, seed: int = 0, rate: float = 0.0, noise: int = 0) -> list[Any]:
    """Of these steps on the same packs, after somebody else has drawn ``noise`` random numbers before each."""
    still = replace(OPTIONS, learning_rate=rate, stream_learning_rate=rate)
    stepper = stepper_of(model, still, seed)
    batches = packs()
    measured: list[Measured] = []
    for number in steps:
        torch.rand(noise)
        measured.append(stepper.step(number, batches, 1.0))
    return [(one.tally.means([])["loss"], one.norm) for one in measured]


def test_parameters_are_checked_however_large_they_are() -> None:
    model = with_dropout()
    stepper = stepper_of(model, OPTIONS)
    first = next(p for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        first.view(-1)[3] = 3e38  # its square is not finite, and it is
    stepper.check_parameters(4)
    for value in (math.inf, -math.inf, math.nan):
        with torch.no_grad():
            first.view(-1)[3] = value
        with pytest.raises(UserError, match=r"step 4: 1 of the trained parameters .* no longer finite"):
            stepper.check_parameters(4)


def test_dropout_depends_on_seed_and_step_alone() -> None:
    model = with_dropout()
    first = losses(model, range(4))
    assert losses(model, range(4), noise=7) == first
    assert len(set(first)) == 4
    assert not set(losses(model, range(4), seed=1)) & set(first)


def test_steps_with_dropout_go_on_as_they_would_have() -> None:
    """From the parameters and the optimiser's state after two steps, wherever torch's own generator stands."""
    whole = with_dropout()
    optimizer = make_optimizer(whole, OPTIONS)
    stepper = stepper_of(whole, OPTIONS, optimizer=optimizer)
    batches = [packs(10 * number) for number in range(4)]
    for number in range(2):
        stepper.step(number, batches[number], 1.0)
    kept = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    wanted = [stepper.step(number, batches[number], 1.0) for number in (2, 3)]

    torch.manual_seed(99)
    again = with_dropout()
    again.load_state_dict(kept[0])
    optimizer = make_optimizer(again, OPTIONS)
    optimizer.load_state_dict(kept[1])
    resumed = stepper_of(again, OPTIONS, optimizer=optimizer)
    got = [resumed.step(number, batches[number], 1.0) for number in (2, 3)]
    assert [(a.norm, a.tally.means([])) for a in got] == [(a.norm, a.tally.means([])) for a in wanted]
    after = parameters_of(whole)
    assert all(torch.equal(p, after[name]) for name, p in parameters_of(again).items())
