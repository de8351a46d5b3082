"""Questions about drawings, with answers as even as the drawing allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..data.boxes import Box
from .clips import direction
from .documents import scale_box
from .layout import PATTERN, Item
from .lexicon import COLOURS, NOUNS, PHRASES, SHAPES, SIDES, SIGN, TILE, article, plural
from .questions import Question, write_box

MOST_COUNTED = 4
_MANY = 2  # things, at least, that a hard question asks to count
_APART = 8  # pixels, at least, between two things in both directions, for a relation to be asked
_LOCATED = 12  # pixels, the shorter side at least, for a box to be asked: coordinates come in steps of 4


@dataclass(frozen=True)
class _Asker:
    """One drawing and the chance that decides what is asked about it; methods return None if nothing fits."""

    rng: np.random.Generator
    items: tuple[Item, ...]
    width: int
    height: int

    def one_of(self, choices: Sequence[object]) -> int:
        return int(self.rng.integers(len(choices)))

    def question(self, family: str, phrase: str, answer: str, about: Sequence[Item], **words: str) -> Question:
        phrases = PHRASES[phrase]
        text = phrases[self.one_of(phrases)].format(**words)
        frames = len(self.items[0].boxes)
        boxes = tuple(tuple(item.boxes[frame] for item in about) for frame in range(frames))
        return Question(family, text, answer, boxes, names=tuple(words[key] for key in ("a", "b") if key in words))

    def having(self, noun: str | None = None, colour: str | None = None) -> list[Item]:
        return [i for i in self.items if noun in (None, i.noun) and colour in (None, i.colour)]

    def names(self, item: Item) -> list[str]:
        """The shortest ways to say which item is meant: by noun, by colour, or by both; empty if nothing tells."""
        short = []
        if len(self.having(noun=item.noun)) == 1:
            short.append(f"the {item.noun}")
        if len(self.having(colour=item.colour)) == 1:
            short.append(f"the {item.colour} thing")
        if short:
            return short
        return [f"the {item.colour} {item.noun}"] if len(self.having(item.noun, item.colour)) == 1 else []

    def name(self, item: Item) -> str | None:
        names = self.names(item)
        return names[self.one_of(names)] if names else None

    def some(self, items: Sequence[Item]) -> Item | None:
        return items[self.one_of(items)] if items else None

    # stills of things

    def attribute(self) -> Question | None:
        item = self.items[self.one_of(self.items)]
        if self.rng.random() < 0.5:
            if len(self.having(noun=item.noun)) == 1:
                return self.question("attributes", "colour", item.colour, [item], a=f"the {item.noun}")
        elif len(self.having(colour=item.colour)) == 1:
            return self.question("attributes", "noun", item.noun, [item], colour=item.colour)
        return None

    def count(self) -> Question | None:
        keys = [(noun, None) for noun in NOUNS] + [(None, colour) for colour in COLOURS]
        matches: dict[int, list[tuple[str, list[Item]]]] = {}
        for noun, colour in keys:
            found = self.having(noun, colour)
            matches.setdefault(len(found), []).append((plural(noun) if noun else f"{colour} things", found))
        numbers = [number for number in matches if number <= MOST_COUNTED]
        number = numbers[self.one_of(numbers)]
        if number <= 1 and self.rng.random() < 0.3:  # few drawings have four of a kind: ask for less of the others
            return None
        many, found = matches[number][self.one_of(matches[number])]
        return self.question("counting", "count", str(number), found, many=many)

    def count_many(self) -> Question | None:
        asked = self.count()
        return asked if asked is not None and int(asked.answer) >= _MANY else None

    def existence(self) -> Question | None:
        item = self.items[self.one_of(self.items)]
        there = self.rng.random() < 0.5
        colours = [item.colour] if there else self._wrong_colours(item.noun)
        if not colours:
            return None
        colour = colours[self.one_of(colours)]
        found = self.having(item.noun, colour)
        near = found or [i for i in self.items if i.noun == item.noun or i.colour == colour]
        answer = "yes" if there else "no"
        return self.question("existence", "exist", answer, near, one=article(f"{colour} {item.noun}"))

    def _wrong_colours(self, noun: str) -> list[str]:
        """Colours that this noun does not have here: those of other things, where there are any."""
        own = {item.colour for item in self.having(noun)}
        others = [colour for colour in COLOURS if colour not in own and self.having(colour=colour)]
        return others or [colour for colour in COLOURS if colour not in own]

    def relation(self) -> Question | None:
        a, b = self.items[self.one_of(self.items)], self.items[self.one_of(self.items)]
        across, down = a.centre[0] - b.centre[0], a.centre[1] - b.centre[1]
        if min(abs(across), abs(down)) < _APART or not (names := (self.name(a), self.name(b)))[0] or not names[1]:
            return None
        return self.question("relation", "relation", _side(across, down), [a, b], a=names[0], b=names[1])

    def corner(self) -> Question | None:
        item = self.items[self.one_of(self.items)]
        across, down = item.centre[0] - self.width / 2, item.centre[1] - self.height / 2
        if min(abs(across), abs(down)) < _APART / 2 or (name := self.name(item)) is None:
            return None
        return self.question("relation", "corner", _side(across, down), [item], a=name)

    def reading(self) -> Question | None:
        return self.reading_on((TILE, SIGN)[self.one_of((TILE, SIGN))])

    def reading_sign(self) -> Question | None:
        return self.reading_on(SIGN)

    def reading_on(self, noun: str) -> Question | None:
        item = self.some(self.having(noun=noun))
        if item is None or len(self.having(noun, item.colour)) > 1:
            return None
        alone = len(self.having(noun=noun)) == 1 and self.rng.random() < 0.5
        name = f"the {noun}" if alone else f"the {item.colour} {noun}"
        return self.question("reading", noun, item.text, [item], a=name)

    def localisation(self) -> Question | None:
        item = self.items[self.one_of(self.items)]
        x0, y0, x1, y1 = item.box
        name = self.name(item)
        if name is None or min(x1 - x0, y1 - y0) < _LOCATED:
            return None
        asked = self.question("localisation", "locate", write_box(item.box), [item], a=name)
        return replace(asked, metric="iou")

    # pages and charts

    def line(self) -> Question | None:
        item = self.items[self.one_of(self.items)]
        return self.question("reading", "line", item.text, [item], colour=item.colour)

    def value(self) -> Question | None:
        item = self.items[self.one_of(self.items)]
        asked = self.question("charts", "value", item.text, [item], colour=item.colour)
        return replace(asked, boxes=((*asked.boxes[0], scale_box(self.height)),))

    def extreme(self) -> Question | None:
        highest = self.rng.random() < 0.5
        ranked = sorted(self.items, key=lambda item: int(item.text), reverse=highest)
        if len(ranked) < 2 or ranked[0].text == ranked[1].text:
            return None
        return self.question("charts", "highest" if highest else "lowest", ranked[0].colour, self.items)

    # clips

    def movement(self) -> Question | None:
        item = self.some([item for item in self.items if direction(item)])
        if item is None or not (name := self.name(item)):
            return None
        return self.question("clips", "move", direction(item), [item], a=name)

    def change(self) -> Question | None:
        item = self.some([item for item in self.items if item.noun in SHAPES])
        if item is None:
            return None
        last = self.rng.random() < 0.5
        answer = (item.becomes or item.colour) if last else item.colour
        return self.question("clips", "become" if last else "was", answer, [item], a=f"the {item.noun}")


def _side(across: float, down: float) -> str:
    return SIDES[(2 if down > 0 else 0) + (1 if across > 0 else 0)]


# For each kind of scene, what is asked about it, and how often.
_ASKED: dict[str, tuple[tuple[Callable[[_Asker], Question | None], float], ...]] = {
    "objects": (
        (_Asker.attribute, 3.0),
        (_Asker.count, 2.0),
        (_Asker.existence, 1.6),
        (_Asker.relation, 5.0),
        (_Asker.reading, 3.0),
        (_Asker.localisation, 3.0),
    ),
    "page": ((_Asker.line, 1.0),),
    "chart": ((_Asker.value, 3.0), (_Asker.extreme, 1.0)),
    "clip": ((_Asker.movement, 1.0), (_Asker.change, 1.0)),
}


# Easier questions on the way to those above: where one thing is, before where it is as seen from another.
_LESSONS: dict[str, tuple[tuple[Callable[[_Asker], Question | None], float], ...]] = {
    "objects": ((_Asker.corner, 3.0),),
}


# What is asked instead where it is to be hard: what takes many tokens to answer.
_HARD: dict[str, tuple[tuple[Callable[[_Asker], Question | None], float], ...]] = {
    "objects": (
        (_Asker.attribute, 3.0),
        (_Asker.count_many, 6.0),
        (_Asker.existence, 2.0),
        (_Asker.relation, 8.0),
        (_Asker.reading_sign, 3.0),
        (_Asker.localisation, 3.0),
    ),
    "chart": ((_Asker.value, 1.0), (_Asker.extreme, 1.0)),
}


def ask(
    rng: np.random.Generator,
    kind: str,
    items: Sequence[Item],
    size: tuple[int, int],
    wanted: int,
    lessons: bool,
    hard: bool = False,
) -> tuple[Question, ...]:
    """Up to `wanted` different questions about what a drawing of a (height, width) shows.

    `lessons` adds easier ones; `hard` asks what takes many tokens to answer.
    """
    height, width = size
    asker = _Asker(rng, tuple(item for item in items if item.noun != PATTERN), width, height)
    if not asker.items:
        return ()
    usual = _HARD.get(kind, _ASKED[kind]) if hard else _ASKED[kind]
    makers, weights = zip(*usual, *(_LESSONS.get(kind, ()) if lessons else ()), strict=True)
    chances = np.cumsum(weights) / np.sum(weights)
    found: dict[tuple[str, tuple[tuple[Box, ...], ...]], Question] = {}
    for draw in rng.random(4 * wanted):
        question = makers[int(np.searchsorted(chances, draw))](asker)
        if question is not None:
            found.setdefault((question.text, question.boxes), question)
        if len(found) == wanted:
            break
    return tuple(found.values())
