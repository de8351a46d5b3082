"""The words of the testbed: what things are called, how questions are put, and which words stand on signs."""

from __future__ import annotations

import functools
import re

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 225),
    "yellow": (240, 225, 50),
    "magenta": (225, 60, 215),
    "cyan": (60, 215, 225),
    "orange": (245, 140, 30),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
TILE, SIGN = "tile", "sign"  # a tile bears a handwritten digit, a sign a word or a number
NOUNS = (*SHAPES, TILE, SIGN)
SIDES = ("upper left", "upper right", "lower left", "lower right")
DIRECTIONS = ("left", "right", "up", "down")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"


def plural(noun: str) -> str:
    """``"stars"`` of ``"star"``."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def article(phrase: str) -> str:
    """The phrase with its indefinite article."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


# What is asked, in several ways each. {a} and {b} stand for things such as "the red star", {one} for "a red star",
# {many} for "stars" or "red things", {noun} and {colour} for themselves.
PHRASES: dict[str, tuple[str, ...]] = {
    "colour": (
        "what colour is {a}?",
        "what is the colour of {a}?",
        "which colour does {a} have?",
        "tell me the colour of {a}.",
        "name the colour of {a}.",
        "say which colour {a} is painted in.",
        "which paint covers {a}?",
    ),
    "noun": (
        "what is the {colour} thing?",
        "what kind of thing is {colour}?",
        "what shape does the {colour} thing have?",
        "name the {colour} thing.",
        "which object is {colour}?",
        "what do you see in {colour}?",
        "say what the {colour} object is.",
    ),
    "count": (
        "how many {many} are there?",
        "how many {many} do you see?",
        "how many {many} are in the picture?",
        "count the {many}.",
        "what is the number of {many}?",
        "how often do {many} appear?",
        "give the total of all {many}.",
    ),
    "exist": (
        "is there {one}?",
        "do you see {one}?",
        "can you find {one} here?",
        "does the picture show {one}?",
        "is {one} in the picture?",
        "does {one} appear anywhere?",
        "would you say that there is {one}?",
    ),
    "relation": (
        "where is {a} as seen from {b}?",
        "on which side of {b} is {a}?",
        "from {b}, where is {a}?",
        "what is the position of {a} relative to {b}?",
        "relative to {b}, where does {a} lie?",
        "compared with {b}, where do you find {a}?",
        "looking from {b}, in which corner is {a}?",
    ),
    "tile": (
        "which digit is on {a}?",
        "what digit does {a} show?",
        "read the digit on {a}.",
        "what number is written on {a}?",
        "tell me the digit that {a} bears.",
    ),
    "sign": (
        "what does {a} say?",
        "what is written on {a}?",
        "read {a}.",
        "which text is on {a}?",
        "spell the text on {a}.",
        "tell me what {a} says.",
    ),
    "line": (
        "what does the line with the {colour} dot say?",
        "read the line with the {colour} dot.",
        "what is written beside the {colour} dot?",
        "which text follows the {colour} dot?",
        "spell the text next to the {colour} dot.",
        "tell me what stands right of the {colour} dot.",
    ),
    "value": (
        "what is the value of the {colour} bar?",
        "how high is the {colour} bar?",
        "which value does the {colour} bar show?",
        "read the {colour} bar.",
        "to which value does the {colour} bar rise?",
        "what number does the {colour} bar reach?",
    ),
    "highest": (
        "which bar is the highest?",
        "what colour is the highest bar?",
        "name the colour with the largest value.",
        "which bar rises above all others?",
    ),
    "lowest": (
        "which bar is the lowest?",
        "what colour is the lowest bar?",
        "name the colour with the smallest value.",
        "which bar stays below all others?",
    ),
    "locate": (
        "give the box of {a}.",
        "locate {a}.",
        "draw a box around {a}.",
        "find {a} and give its box.",
        "which box holds {a}?",
        "where exactly is {a}? answer with a box.",
        "mark {a} with a box.",
    ),
    "move": (
        "which way does {a} move?",
        "in which direction does {a} go?",
        "where does {a} move to?",
        "tell me the direction of {a}.",
        "along which direction does {a} travel?",
    ),
    "become": (
        "what colour does {a} become?",
        "what colour is {a} at the end?",
        "to which colour does {a} change?",
        "which colour does {a} have in the last frame?",
        "after the change, what is the colour of {a}?",
    ),
    "was": (
        "what colour was {a} at first?",
        "what colour is {a} at the start?",
        "from which colour does {a} change?",
        "which colour does {a} have in the first frame?",
        "before any change, what is the colour of {a}?",
    ),
    "corner": (
        "where in the picture is {a}?",
        "in which corner of the picture is {a}?",
        "where is {a}?",
        "in which corner does {a} lie?",
    ),
}

_WORDS = """
ace act add age air ale ally ant ape arc area arm army art ash atom aunt away axe baby bad bag bake ball band bank bar
barn base bat bath bay beam bean bear bed bee beer bell belt bend best bike bin bird bit blue boat body bolt bone book
boot bow bowl box boy bud bug bulb bus bush cab cafe cake call calm camp can cane cap car card care cart case cash cat
cave chef chin cite city clay clip club coal coat code coin cold comb cook cool cord cork corn cost cow crab crew crow
cube cup dad dam dark data date dawn day deal dear deck deer den desk dew dial dime dish dive dock doe dog doll dome
door dot dove down drum dry duck dune dusk dust ear east easy echo edge eel egg elf elk elm end eye face fact fair fall
fan far farm fast fawn fee fern fig file film fin fir fire fish fit five flag flat flax flea fly foam fog food foot fork
fort four fox free frog fuel full fun fur game gap gas gate gem gift girl glow glue go goat gold golf good gown gum gym
hair half hall ham hand harp hat hawk hay head heat hen herb hero high hill hip hive home hood hoof hook hope horn host
hour hub hut ice idea if in ink inn iron isle ivy jade jam jar jaw jazz jet job join joke joy juice jump jury key kid
kin king kite knee knot lab lace lad lake lamb lamp land lane law lawn leaf left leg lens lid life lift lily lime line
lion lip list load loaf lock log look loop lot love low luck lung maid mail main mall man map mask mat maze meal meat
melt menu mile milk mill mind mint mist mix moon moss moth mud mug mule nail name navy neck nest net new news nine noon
north nose note nut oak oar oat oil old olive one open oven owl ox pack page pair palm pan park part path paw pea peak
pear peel pen pet pie pier pig pile pin pine pink pint pipe plan play plum pod poem pond pony pool port post pot pub
pump queen quiz rag rail rain ram rat ray red reed rice ride ring road robe rock roof room root rope rose rug run rye
safe sail salt sand saw scar sea seal seat seed ship shoe shop side silk sing six ski skin sky sled snow soap sock sofa
soil song soup spin spot star stem step sun swan swim tail tale tank tape taxi tea team tent test text tide tie tile
time tin tip toad toe ton tool top town toy tray tree trip tube tug tuna two urn vale van vase vest vet view vine void
wall war wasp wave wax web week well west wheat whip wide wig wind wine wing wire wolf wood wool work worm yard yarn
year yew yes yolk zap zero zinc zone zoo
"""


@functools.cache
def words(split: str) -> list[str]:
    """The words of 2 to 4 letters that signs and pages of a split bear: no split shares one with another."""
    short = sorted({word.upper() for word in _WORDS.split() if 2 <= len(word) <= 4})
    share = {"validation": (0,), "test": (1,), "train": (2, 3, 4, 5, 6)}[split]
    return [word for i, word in enumerate(short) if i % 7 in share]


def vocabulary() -> list[str]:
    """Every word that questions and answers are made of, in a fixed order; letters and digits stand for themselves."""
    things = [*NOUNS, *map(plural, NOUNS), "thing", "things", *COLOURS, *" ".join((*SIDES, *DIRECTIONS)).split()]
    asked = re.findall(r"[a-z]+|[?.,]", re.sub(r"{\w+}", " ", " ".join(p for ps in PHRASES.values() for p in ps)))
    return list(dict.fromkeys([*"?.,", "yes", "no", "the", "a", "an", *things, *asked, *LETTERS, *DIGITS]))
