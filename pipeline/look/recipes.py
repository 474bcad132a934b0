"""The list of recipes and layouts that ``pipeline recipes`` shows."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from pipeline.layout_file import load_layout
from pipeline.recipe import load_recipe
from pipeline.resources import shipped


def render(console: Console) -> None:
    """Print shipped recipes with their options, and shipped layouts with their streams."""
    recipes = Table("recipe", "layout", "options", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in shipped("recipes"):
        recipe = load_recipe(name)
        options = ", ".join(f"{key}={value}" for key, value in recipe.options.items() if value not in (None, {}))
        recipes.add_row(f"[bold cyan]{name}[/]", recipe.layout.name, options)
        recipes.add_row("", "", f"[dim]{recipe.description}[/]", end_section=True)
    console.print(recipes)
    console.print()
    layouts = Table("layout", "streams", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in shipped("layouts"):
        layout = load_layout(name)
        layouts.add_row(f"[bold cyan]{name}[/]", ", ".join(stream.name for stream in layout.streams))
        layouts.add_row("", f"[dim]{layout.description}[/]", end_section=True)
    console.print(layouts)
    console.print("\nYour own: --recipe FILE.yaml; change one option of any: --set KEY=VALUE.")
