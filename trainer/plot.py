"""The curves of a run as a PNG."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UserError
from trainer.metrics import KINDS
from trainer.records import METRICS_FILE, VALIDATION_FILE, read_table


def plot(run: Path, out: Path) -> None:
    """Draw losses, gradient norm, learning rate and speed over steps. Raises UserError."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("trainer plot needs matplotlib: pip install 'multistream-pipeline[plot]'") from None
    path = run / METRICS_FILE
    rows = read_table(path) if path.exists() else []
    if not rows:
        raise UserError(f"{path}: no step has been measured yet")
    held_out = read_table(run / VALIDATION_FILE) if (run / VALIDATION_FILE).exists() else []
    streams = [name for name in rows[0] if name.startswith("loss/") and any(row[name] for row in rows)]
    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = figure.subplots(2, 2)
    chosen = {
        "loss": ["loss", *streams],
        "loss by what happens": list(KINDS.values()),
        "gradient norm, learning rate": ["gradient_norm", "learning_rate"],
        "positions per second": ["positions_per_second"],
    }
    for panel, (title, names) in zip(panels.flat, chosen.items(), strict=True):
        for name in names:
            target = panel.twinx() if name == "learning_rate" else panel
            target.plot(*_curve(rows, name), label=name, color="grey" if name == "learning_rate" else None)
            if held_out and name in held_out[0]:
                panel.plot(*_curve(held_out, name), "o--", label=f"{name}, validation")
        panel.set_title(title)
        panel.set_xlabel("step")
        panel.legend()
    figure.savefig(out, dpi=120)


def _curve(rows: list[dict[str, str]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values, where there is one."""
    points = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
    return [step for step, _ in points], [value for _, value in points]
