"""Write docs/methods.md from the registry of methods and their docstrings.

Usage: python scripts/methods_page.py; tests/cli/test_facts.py tells when it is due.
"""

from __future__ import annotations

from pathlib import Path

from foveate.cli.facts import MethodFacts, facts_of
from foveate.methods import method_names
from foveate.methods.base import method_class

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
INTRO = """# Methods

`foveate methods NAME` prints the same of one method. [provenance.md](provenance.md) tells how each was checked. This
page is written by `python scripts/methods_page.py` from the code; do not edit it. Where authors chose other values for
other models, a second table has their published settings by model family: a method takes them when it is bound to a
model, and what you set yourself wins.
"""
COLUMNS = ("prunes", "needs", 'keep="auto"', "vLLM", "paper")


def page() -> str:
    """The page, of foveate's own methods."""
    own = [name for name in method_names() if method_class(name).__module__.startswith("foveate.")]
    known = [facts_of(name) for name in own]
    index = [_row("method", *COLUMNS), _row(*["---"] * (len(COLUMNS) + 1))]
    for one in known:
        short = {**one.facts, "vLLM": one.facts["vLLM"].split(":")[0]}
        index.append(_row(f"[{one.name}](#{one.name})", *(short.get(column, "") for column in COLUMNS)))
    return "\n".join([INTRO, *index, "", *(_section(one) for one in known)])


def _section(one: MethodFacts) -> str:
    blocks = [f"## {one.name}", one.summary]
    if one.about:
        blocks.append(one.about)
    blocks.append("\n".join([_row("", ""), _row("---", "---"), *(_row(*fact) for fact in one.facts.items())]))
    if one.hyperparameters:
        rows = [_row("hyperparameter", "type", "default", ""), _row(*["---"] * 4)]
        rows += [_row(f"`{h.name}`", f"`{h.type}`", f"`{h.default}`", h.description) for h in one.hyperparameters]
        blocks.append("\n".join(rows))
    if one.published:
        rows = [_row("published setting", *(", ".join(some.families) for some in one.published))]
        rows.append(_row(*["---"] * (len(one.published) + 1)))
        for name in one.published[0].values:
            rows.append(_row(f"`{name}`", *(f"`{some.values[name]}`" for some in one.published)))
        blocks.append("\n".join(rows))
    return "\n\n".join(blocks) + "\n"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")
