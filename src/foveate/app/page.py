"""The page itself: a picture, a question and methods on the left, what they answer and keep on the right."""

from __future__ import annotations

import functools
import html
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..data.images import decode_image
from ..data.limits import list_words
from ..data.loading import LoadedModel
from ..errors import FoveateError
from ..methods import Where
from ..testbed import Scene, scenes
from .choices import Choice, choices_for
from .desk import UNPRUNED, Answer, Desk
from .drawing import card, data_url, failed_card, table
from .errors import AppError

MOST_METHODS = 6  # that one question can be asked with at once
MOST_AT_ONCE = 32  # people whose questions are under way; others wait in line
LONGEST_ANSWER = 512
_KEPT_FOR = 3600  # seconds that a picture which somebody gave lies on the server's disk
_LARGEST_FILE = "50mb"
_OFTEN = ("idpruner", "d2pruner", "divprune", "fastv", "visionzip", "sparsevlm", "random", "stride")
_FIRST = ("idpruner", "d2pruner", "divprune")  # the first two of these that the model runs are chosen already
_EXAMPLES = ("counting", "relation", "attributes", "reading", "charts", "existence")  # one question of each family
_HERE = Path(__file__).parent

_TOOLBAR = """
<div class="fv-toolbar" data-run role="group" aria-label="What the pictures show">
<div class="fv-segments" role="radiogroup" aria-label="View">
<label><input type="radio" name="fv-view" value="kept" checked><span>Kept tokens</span></label>
<label><input type="radio" name="fv-view" value="importance"><span>Importance</span></label>
<label><input type="radio" name="fv-view" value="order"><span>Order of picks</span></label>
</div>
<div class="fv-player" hidden><button type="button" aria-label="Play the order of picks"></button>
<input type="range" min="0" max="1" step="1" value="1" aria-label="Picks that are shown"><output></output></div>
</div>
"""

_PICK = """
const boxes = () => [...element.querySelectorAll('input[type=checkbox]')];
const show = () => {
  const chosen = new Set(props.value || []);
  for (const box of boxes()) box.checked = chosen.has(box.value);
};
show();
watch('value', show);
element.addEventListener('change', (event) => {
  const chosen = new Set(props.value || []);
  if (event.target.checked) chosen.add(event.target.value); else chosen.delete(event.target.value);
  props.value = [...chosen];
});
"""

_CHOOSE = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-example]');
  if (button) trigger('click', { example: Number(button.dataset.example) });
});
"""


def build(session: LoadedModel) -> tuple[Any, Desk]:
    """The page for a model, and the desk that its questions go over, which is to be closed in the end.

    Returns:
        a ``gradio.Blocks``, not launched, and the desk.
    """
    gradio = import_gradio()
    desk = Desk(session)
    choices = {choice.name: choice for choice in choices_for(session.model)}
    chosen = [name for name in _FIRST if name in choices and not choices[name].refusal][:2]
    examples = example_questions()

    plain = functools.partial(gradio.HTML, apply_default_css=False)

    with gradio.Blocks(
        title="foveate", analytics_enabled=False, fill_width=True, delete_cache=(_KEPT_FOR, _KEPT_FOR)
    ) as page:
        plain(_head(session), elem_id="fv-head")
        with gradio.Row(elem_id="fv-page"):
            with gradio.Column(elem_id="fv-ask"):
                picture = gradio.Image(
                    label="Picture",
                    type="filepath",
                    format="png",
                    sources=["upload", "clipboard"],
                    height=220,
                    buttons=["fullscreen"],
                    elem_id="fv-given",
                )
                question = gradio.Textbox(
                    label="Question", placeholder="How many stars are there?", lines=1, max_lines=4, max_length=2000
                )
                methods = plain(
                    chosen, html_template=_picker(list(choices.values())), js_on_load=_PICK, elem_classes="fv-picker"
                )
                keep = gradio.Slider(1, 100, 25, step=1, label="Keep (% of visual tokens)")
                button = gradio.Button("Ask", variant="primary")
                message = plain("", elem_classes="fv-messages")
                with gradio.Accordion("More", open=False):
                    longest = gradio.Slider(1, LONGEST_ANSWER, 64, step=1, label="Longest answer (tokens)")
                # What is given is checked here, in sentences, and pictures are opened as the command line opens them.
                # (Of components of one's own gradio would write a file beside this one.)
                picture.preprocess = lambda given: None if given is None else given.path
                keep.preprocess = longest.preprocess = lambda given: given
            with gradio.Column(elem_id="fv-results"):
                toolbar = plain("")
                with gradio.Row(elem_id="fv-cards"):
                    cards = [plain("") for _ in range(MOST_METHODS + 1)]
                costs = plain("")
                strip = plain(html_template=_strip(examples), js_on_load=_CHOOSE)

        outputs = [message, toolbar, *cards, costs]

        def ask(
            path: str | None, asked: str, names: list[str] | None, percent: float, tokens: float
        ) -> Iterator[list[Any]]:
            shown = _Shown(len(outputs), gradio.skip)
            try:
                yield from _answers(desk, choices, shown, path, asked, names or [], percent, tokens)
            except FoveateError as error:
                yield shown.message(str(error), failed=True)

        def take(event: Any) -> tuple[Any, str]:
            scene, text = examples[event.example]
            return scene.image, text

        take.__annotations__["event"] = gradio.EventData  # by which gradio knows what to call it with

        asking = {"inputs": [picture, question, methods, keep, longest], "outputs": outputs}
        limits = {"concurrency_limit": MOST_AT_ONCE, "concurrency_id": "ask", "show_progress": "hidden"}
        taken = strip.click(take, None, [picture, question], api_visibility="private", show_progress="hidden")
        taken = taken.then(ask, api_visibility="private", **asking, **limits)
        # Of two questions on one page the later one goes on alone, as both would write on the same cards.
        asked = gradio.on([button.click, question.submit], ask, api_name="ask", cancels=[taken], **asking, **limits)
        strip.click(None, cancels=[asked], api_visibility="private")
    return page, desk


def _answers(
    desk: Desk,
    choices: dict[str, Choice],
    shown: _Shown,
    path: str | None,
    asked: str,
    names: list[str],
    percent: float,
    tokens: float,
) -> Iterator[list[Any]]:
    """What the page shows while a question is answered: first with all tokens, then with each method."""
    question = (asked or "").strip()
    names = list(dict.fromkeys([names] if isinstance(names, str) else map(str, names)))
    _check(choices, path, question, names, percent, tokens)
    yield shown.start()
    file = Path(str(path))  # errors name the file, not where it lies on the server
    prepared = desk.prepare(decode_image(file.read_bytes(), file.name), question)
    picture, size = data_url(prepared.visible)
    remarks = []
    if prepared.unknown:
        remarks.append(f"The model does not know {list_words(prepared.unknown)}; ask what it was trained for.")
    if prepared.cropped:
        remarks.append("The model sees the centre of the picture only; the rest is cropped off.")
    unpruned: Answer | None = None
    done: list[Answer] = []
    for place, name in enumerate((None, *names)):
        label = name or UNPRUNED
        note = choices[name].note if name else ""
        yield shown.run(place, card(label, ""), f"Answering with {label} …")
        try:
            for said in desk.ask(prepared, name, f"{percent:g}%", int(tokens)):
                if isinstance(said, str):
                    yield shown.run(place, card(label, said))
                    continue
                unpruned = unpruned or said
                done.append(said)
                made = card(label, said.text, said, picture, size, unpruned, note)
                yield shown.run(place, made, costs=table(done))
        except FoveateError as error:
            yield shown.run(place, failed_card(label, str(error)))
    yield shown.message(" ".join(remarks))


def _check(
    choices: dict[str, Choice], path: str | None, question: str, names: Sequence[str], percent: float, tokens: float
) -> None:
    """Raise AppError for what cannot be asked."""
    if not path:
        raise AppError("There is no picture yet; drop one, or click an example.")
    if not question:
        raise AppError("There is no question yet; write one, such as 'How many stars are there?'.")
    if not names:
        raise AppError("No method is chosen; choose at least one.")
    if len(names) > MOST_METHODS:
        raise AppError(f"{len(names)} methods are too many for one question; choose at most {MOST_METHODS}.")
    if not _between(percent, 1, 100):
        raise AppError(f"{percent} is not a share of the visual tokens; give a number from 1 to 100.")
    if not _between(tokens, 1, LONGEST_ANSWER):
        raise AppError(f"{tokens} is not a length of an answer; give a number from 1 to {LONGEST_ANSWER}.")
    for name in names:
        if not isinstance(name, str) or name not in choices:
            raise AppError(f"{name!r} is not a method; choose some of those that the page lists.")
        if choices[name].refusal:
            raise AppError(choices[name].refusal)


def _between(number: object, low: int, high: int) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and low <= number <= high


class _Shown:
    """Updates of the page's outputs: the message, the toolbar, the cards, and the table; what is not named stays."""

    def __init__(self, outputs: int, skip: Any) -> None:
        self._outputs, self._skip = outputs, skip

    def start(self) -> list[Any]:
        """Everything of the question before is gone."""
        update = [""] * self._outputs
        # The number makes it another bar each time, which the page's script takes for the start of a new question.
        bar = _TOOLBAR.replace("data-run", f'data-run="{time.monotonic_ns()}"')
        update[0], update[1] = _said("Looking at the picture …"), bar
        return update

    def message(self, text: str, failed: bool = False) -> list[Any]:
        """A sentence, and nothing else; empty to take it away."""
        return self._update({0: _said(text, failed)})

    def run(self, place: int, made: str, message: str | None = None, costs: str | None = None) -> list[Any]:
        """The card of one run, the first of which is that with all tokens."""
        update = {2 + place: made}
        if message is not None:
            update[0] = _said(message)
        if costs is not None:
            update[self._outputs - 1] = costs
        return self._update(update)

    def _update(self, update: dict[int, str]) -> list[Any]:
        return [update.get(place, self._skip()) for place in range(self._outputs)]


def _said(text: str, failed: bool = False) -> str:
    if not text:
        return ""
    kind, role = ("fv-error", "alert") if failed else ("fv-say", "status")
    return f'<div class="fv-message {kind}" role="{role}">{html.escape(text)}</div>'


def _head(session: LoadedModel) -> str:
    size = session.model.num_parameters()
    many = f"{size / 1e9:.1f} B" if size >= 1e9 else f"{size / 1e6:.1f} M"
    return (
        '<header class="fv-head"><h1>foveate</h1><p>See what a model answers when it sees only the tokens that matter.'
        f'</p><span class="fv-model">{html.escape(session.label)}, {many} parameters</span></header>'
    )


def _picker(choices: Sequence[Choice]) -> str:
    """Check boxes for all methods; those that the model refuses cannot be chosen, and say why."""
    known = {choice.name: choice for choice in choices}
    often = [known[name] for name in _OFTEN if name in known]
    parts = [f'<fieldset><legend>Methods</legend><div class="fv-chips">{_chips(often)}</div>']
    rest = [choice for choice in choices if choice.name not in _OFTEN]
    groups = []
    for where in Where:
        here = [choice for choice in rest if choice.where is where]
        if here:
            groups.append(f'<h4>Prune {where.value}</h4><div class="fv-chips">{_chips(here)}</div>')
    parts.append(f'<details><summary>{len(rest)} more methods</summary><div class="fv-all">{"".join(groups)}</div>')
    parts.append("</details>")
    refused = [choice for choice in choices if choice.refusal]
    if refused:
        lines = "".join(
            f'<li id="fv-no-{one.name}"><b>{one.name}</b>{html.escape(one.refusal)}</li>' for one in refused
        )
        number = f"{len(refused)} method{'s' if len(refused) > 1 else ''}"
        parts.append(
            f"<details><summary>Why {number} cannot be chosen</summary><ul class='fv-refused'>{lines}</ul></details>"
        )
    return "".join([*parts, "</fieldset>"])


def _chips(choices: Sequence[Choice]) -> str:
    made = []
    for one in choices:
        refused = f' disabled aria-describedby="fv-no-{one.name}"' if one.refusal else ""
        title = html.escape(one.refusal or one.summary)
        made.append(
            f'<label title="{title}"><input type="checkbox" value="{one.name}" aria-label="{one.name}"{refused}>'
            f"<span>{one.name}</span></label>"
        )
    return "".join(made)


def example_questions() -> list[tuple[Scene, str]]:
    """Scenes that come with foveate, each with a question of another family."""
    found: list[tuple[Scene, str]] = []
    left = scenes()
    for family in _EXAMPLES:
        for scene in left:
            asked = next((one for one in scene.questions if one.family == family), None)
            if asked is not None:
                text = asked.text[0].upper() + asked.text[1:]
                found.append((scene, text))
                left.remove(scene)
                break
    return found


def _strip(examples: Sequence[tuple[Scene, str]]) -> str:
    items = []
    for number, (scene, text) in enumerate(examples):
        picture, _ = data_url(scene.image)
        items.append(
            f'<li><button type="button" data-example="{number}"><img src="{picture}" alt="A drawn scene">'
            f"<span>{html.escape(text)}</span></button></li>"
        )
    return (
        '<section class="fv-examples" aria-labelledby="fv-examples-title"><h2 id="fv-examples-title">Try one of '
        f"these</h2><ul>{''.join(items)}</ul></section>"
    )


def import_gradio() -> Any:
    """gradio, which reports nothing to its makers."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio

    return gradio


def look(gradio: Any) -> dict[str, Any]:
    """What a page of `build` is launched with: its style and script, fonts of the system, nothing from elsewhere."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gradio.themes.Base(primary_hue="teal", neutral_hue="slate", radius_size="md", **fonts)
    script, style = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    return {
        "theme": theme.set(
            button_primary_background_fill="#0b6e77",
            button_primary_background_fill_hover="#095a61",
            button_primary_text_color="#ffffff",
            slider_color="#0b6e77",
        ),
        # Not as css, whose selectors gradio rewrites.
        "head": f"<style>{style}</style><script>{script}</script>",
        "footer_links": [],
        "max_file_size": _LARGEST_FILE,
        "ssr_mode": False,
        "share": False,
        "enable_monitoring": False,
    }
