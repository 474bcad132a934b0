"""What two datasets were made with that differs, in words."""

from __future__ import annotations

from pipeline.store.identity import differences, identity_of
from pipeline.store.manifest import Manifest, TokenizerEntry

_SIDES = ("in A", "in B")


def differing(a: Manifest, b: Manifest) -> list[str]:
    """What differs in recipe, layout, tokenizer, teacher and inputs, one line each; the recipe first, the inputs last."""
    one, other = identity_of(a), identity_of(b)
    inputs_a, inputs_b = one.pop("inputs"), other.pop("inputs")
    one["tokenizer"], other["tokenizer"] = _tokenizers(a.tokenizer, b.tokenizer)
    layouts = {"layout": one.pop("layout")}, {"layout": other.pop("layout")}
    for made in (one, other):
        made["recipe"] = {
            name: value for name, value in made["recipe"].items() if name != "layout"
        }  # layout.name says it
    lines = [*differences(one, other, sides=_SIDES), *differences(*layouts, sides=_SIDES)]
    for name in sorted(inputs_a.keys() | inputs_b.keys()):
        if name not in inputs_b:
            lines.append(f"inputs: {name} only in A")
        elif name not in inputs_a:
            lines.append(f"inputs: {name} only in B")
        elif inputs_a[name] != inputs_b[name]:
            lines.append(f"inputs: {name} is another file in B: its bytes differ")
    return lines


def _tokenizers(a: TokenizerEntry, b: TokenizerEntry) -> tuple[str, str]:
    """Names that tell two tokenizers apart; how the file of one and the same is called makes no difference."""
    if a.sha256 == b.sha256:
        return "the same", "the same"
    if a.name != b.name:
        return a.name, b.name
    return f"{a.name} ({a.sha256[:12]})", f"{b.name} ({b.sha256[:12]})"
