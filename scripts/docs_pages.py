"""The pages of the site that are written from the code: one a method, and the table of all. A hook of mkdocs.

They are made while the site is built, so that what they say of a method is kept in one place, beside its code.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from foveate.catalog import OWN_RULE, MethodFacts, facts_of
from foveate.methods import method_names
from foveate.methods.toolkit.registry import method_class

FOLDER = "methods"
RECORDS = "<!-- records of the methods -->"  # in provenance.md
INTRO = """---
hide: [toc]
---

# Methods

Choose one by name: `foveate.prune(model, "divprune", keep=0.25)`, or `--method divprune` on the command line.
[Choose a method](../guides/choose_a_method.md) helps you to decide; `foveate methods NAME` prints one of these pages in
the terminal, and [provenance](../provenance.md) has the test that compares each method with its reference.

"Needs" lists what a method reads besides the features of the visual tokens. These are its [cues](../concepts.md#cues).
`keep="auto"` works with all methods that prune before the LLM alone, by
[how much the tokens of an image differ](../guides/documents.md); by rules of their own with {counting}.
"""
COLUMNS = ("needs", "vLLM", "paper")
# In this order; others, of which there are few methods, come behind them.
PLACES = ("before the LLM", "inside the LLM", "before the LLM and inside it", "before the vision encoder")


def pages() -> dict[str, str]:
    """Markdown by path within docs/: foveate's own methods, not those of other packages that are installed."""
    known = [facts_of(name) for name in _own()]
    return {f"{FOLDER}/index.md": _index(known)} | {f"{FOLDER}/{one.name}.md": _page(one) for one in known}


def _own() -> list[str]:
    return [name for name in method_names() if method_class(name).__module__.startswith("foveate.")]


def on_config(config: Any) -> Any:
    """Put the methods' pages into the navigation, below their index."""
    index = f"{FOLDER}/index.md"
    for entry in config.nav:
        for title, target in entry.items():
            if target == index:
                entry[title] = [index, *(path for path in pages() if path != index)]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to those that are read from docs/."""
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the table of all records in the place that a page has for it."""
    return markdown.replace(RECORDS, records()) if RECORDS in markdown else markdown


def records() -> str:
    """Where each of foveate's own methods comes from, as a table."""
    rows = [_row("method", "paper", "reference code and its licence", "what was read", "deviations", "fidelity test")]
    rows.append(_row(*["---"] * 6))
    for name in _own():
        one = method_class(name).provenance
        tests = "; ".join(re.sub(r"^(\S+)", r"`\1`", test) for test in one.evidence)
        page = f"[{name}]({FOLDER}/{name}.md)"
        rows.append(_row(page, one.source, one.code, one.read, " ".join(one.deviations) or "none known", tests))
    return "\n".join(rows)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings introduce their examples with two colons, as reStructuredText wants it; one is enough on a page."""
    return html.replace("::</p>", ":</p>")


def _index(known: Sequence[MethodFacts]) -> str:
    blocks = [
        INTRO.format(counting=", ".join(f"`{one.name}`" for one in known if one.facts.get('keep="auto"') == OWN_RULE))
    ]
    for place in dict.fromkeys((*PLACES, *(one.facts["prunes"] for one in known))):
        rows = [_row("method", "keeps", *COLUMNS), _row(*["---"] * (len(COLUMNS) + 2))]
        for one in known:
            if one.facts["prunes"] == place:
                short = {**one.facts, "vLLM": one.facts["vLLM"].split(":")[0]}
                keeps = _first_paragraph(method_class(one.name))
                rows.append(_row(f"[{one.name}]({one.name}.md)", keeps, *(short.get(column, "") for column in COLUMNS)))
        blocks += [f"## {place[0].upper()}{place[1:]}", "\n".join(rows)]
    return "\n\n".join(blocks) + "\n"


def _page(one: MethodFacts) -> str:
    call = f'foveate.prune(model, "{one.name}", keep=0.25)'
    blocks = [
        f"# {one.name}",
        one.summary,
        f"```python\nimport foveate\n\nwith {call}:\n    output = model.generate(**inputs)\n```",
    ]
    blocks += ["## How it chooses", _first_paragraph(method_class(one.name))]
    if one.about:
        blocks.append(one.about)
    (head, *facts) = one.facts.items()
    blocks += ["## At a glance", "\n".join([_row(*head), _row("---", "---"), *(_row(*fact) for fact in facts)])]
    if one.hyperparameters:
        rows = [_row("name", "type", "must be", "default", "meaning"), _row(*["---"] * 5)]
        rows += [
            _row(f"`{h.name}`", f"`{h.type}`", h.constraint, f"`{h.default}`", h.description)
            for h in one.hyperparameters
        ]
        blocks += ["## Hyperparameters", "\n".join(rows)]
    if one.published:
        rows = [_row("", *(", ".join(some.families) for some in one.published))]
        rows.append(_row(*["---"] * (len(one.published) + 1)))
        for name in one.published[0].values:
            rows.append(_row(f"`{name}`", *(f"`{some.values[name]}`" for some in one.published)))
        said = "Where you set nothing, the method takes what its authors published for the family of your model."
        blocks += ["## Published settings", said, "\n".join(rows)]
    return "\n\n".join(blocks) + "\n"


def _first_paragraph(cls: type) -> str:
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


def _row(*cells: str) -> str:
    """A row of a table. Bars are escaped but in code, where Markdown would show the backslash."""
    parts = [re.split(r"(`[^`]*`)", cell) for cell in cells]
    escaped = ["".join(part if part.startswith("`") else part.replace("|", "\\|") for part in cell) for cell in parts]
    return "| " + " | ".join(escaped) + " |"
