"""What always stays lies in a pruned image where it lay in the whole one."""

from __future__ import annotations

import pytest
import torch

from foveate import FoveateError
from foveate.serving.vllm.layout import TOKEN, Weaver, layout_of, shorten_prompt

TEXT, IMAGE = 7, 99
# A picture without anything else, one whose two lines end in rows, and one whose lines end in text but for the last.
PLAIN = torch.full((4,), TOKEN)
ROWS = layout_of(torch.tensor([True, True, False, True, True, False]))
BREAKS = torch.tensor([TOKEN, TOKEN, TEXT, TOKEN, TOKEN])


def prompt(layout: torch.Tensor) -> tuple[list[int], list[bool]]:
    """A prompt with text around the image."""
    image = [place if place >= 0 else IMAGE for place in layout.tolist()]
    ids = [1, TEXT, *image, TEXT, 2]
    return ids, [one == IMAGE for one in ids]


@pytest.mark.parametrize(("layout", "stays"), [(PLAIN, 0), (ROWS, 2), (BREAKS, 1)])
def test_a_prompt_loses_as_many_placeholders_as_tokens_and_nothing_around_them(
    layout: torch.Tensor, stays: int
) -> None:
    ids, embeds = prompt(layout)
    for kept in range(1, 5):
        keeps = [index < kept for index in range(4)]
        assert shorten_prompt(ids, embeds, layout, keeps) == [1, TEXT, *[IMAGE] * (kept + stays), TEXT, 2]


@pytest.mark.parametrize("layout", [PLAIN[:3], torch.cat([PLAIN, PLAIN]), BREAKS, torch.tensor([TOKEN, 5, *PLAIN[1:]])])
def test_a_prompt_laid_out_otherwise_is_refused(layout: torch.Tensor) -> None:
    ids, embeds = prompt(PLAIN)
    with pytest.raises(FoveateError, match="cannot be pruned"):
        shorten_prompt(ids, embeds, layout, [True] * int((layout == TOKEN).sum()))


@pytest.mark.parametrize("layout", [PLAIN, ROWS, BREAKS])
def test_rows_are_those_of_the_whole_image_without_what_is_dropped(layout: torch.Tensor) -> None:
    whole = torch.arange(len(layout)).float()[:, None]  # as the language model would read it, text included
    given = whole[layout < 0]
    weaver = Weaver(layout, given.device)
    tokens = weaver.tokens(given)
    assert torch.equal(tokens, whole[layout == TOKEN])
    assert weaver.text.tolist() == [place for place in layout.tolist() if place >= 0]
    index = torch.tensor([1, 2])
    text = whole[layout >= 0] if len(weaver.text) else None
    keep = layout != TOKEN
    keep[(layout == TOKEN).nonzero()[index, 0]] = True
    assert torch.equal(weaver.weave(given, tokens[index], index, text), whole[keep])
