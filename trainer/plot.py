"""The curves of a run as a PNG."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UserError
from trainer.files import new_file
from trainer.metrics import KINDS
from trainer.records import METRICS_FILE, VALIDATION_FILE, read_table


def plot(run: Path, out: Path) -> None:
    """Draw losses, gradient norm, learning rate and speed over steps. Raises UserError."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("trainer plot needs matplotlib: pip install 'multistream-pipeline[plot]'") from None
    known = FigureCanvasBase.get_supported_filetypes()
    kind = out.suffix.lower().removeprefix(".")
    if kind not in known:
        raise UserError(
            f"--out {out}: not a picture that can be drawn; its name must end in .{', .'.join(sorted(known))}"
        )
    path = run / METRICS_FILE
    if not path.exists():
        raise UserError(
            f"{run}: {'no run: there is no ' + METRICS_FILE + ' in it' if run.is_dir() else 'no such directory'}"
        )
    rows = read_table(path)
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
        lines = []
        for name in names:
            target, color = (panel.twinx(), "grey") if name == "learning_rate" else (panel, None)
            (line,) = target.plot(*_curve(rows, name), label=name, color=color)
            lines.append(line)
            if held_out and name in held_out[0]:
                dots = panel.plot(*_curve(held_out, name), "o--", label=f"{name}, validation", color=line.get_color())
                lines.extend(dots)
            if target is not panel:
                target.set_ylabel(name)
        panel.set_title(title)
        panel.set_xlabel("step")
        panel.legend(handles=lines)
    with new_file(out) as beside:
        figure.savefig(beside, format=kind, dpi=120)


def _curve(rows: list[dict[str, str]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values, where there is one."""
    points = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
    return [step for step, _ in points], [value for _, value in points]
