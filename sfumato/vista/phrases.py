"""What is said about Vista scenes: plain names, aesthetic phrases, captions and advice.

Simple words stand for the plain finish and aesthetic phrases for the beautiful one, which is ArtAug's premise about real
text-to-image models ("models tend to generate simple content when given simple prompts", section 3.1).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import TypedDict

from sfumato.vista.world import COLOURS, KINDS, TIMES, Element, Scene, pixel_box, sample_scene, with_finish

TIME_WORDS = {"day": ("by day", "in daylight"), "dusk": ("at dusk", "at sunset"), "night": ("at night", "by night")}
PLAIN: dict[str, tuple[str, ...]] = {
    "sun": ("a sun", "the sun"),
    "moon": ("a {c} moon",),
    "cloud": ("a cloud",),
    "birds": ("birds",),
    "mountains": ("mountains",),
    "lake": ("a lake",),
    "boat": ("a {c} boat",),
    "house": ("a {c} house",),
    "tree": ("a {c} tree",),
    "flowers": ("{c} flowers",),
}
AESTHETIC: dict[str, tuple[str, ...]] = {
    "sun": (
        "a blazing golden sun with radiant rays",
        "a brilliant sun with a warm glowing halo",
        "a luminous sun spreading golden beams",
        "a dazzling sun with radiant warm light",
    ),
    "moon": (
        "a radiant {c} moon with a soft glowing halo",
        "a luminous {c} moon with silver light",
        "a brilliant {c} moon with detailed craters",
        "an enchanting {c} moon with a silver halo",
    ),
    "cloud": (
        "a fluffy cloud with glowing golden edges",
        "a dreamy cloud with soft pastel light",
        "a billowing cloud with delicate shading",
        "a luminous cloud with rich soft shadows",
    ),
    "birds": (
        "graceful birds with bright golden wings",
        "elegant birds with shimmering feathers",
        "splendid birds with glowing golden wings",
        "beautiful birds with luminous wings",
    ),
    "mountains": (
        "majestic snow capped mountains glistening in light",
        "dramatic mountains with shining snow and soft mist",
        "towering mountains with bright snow",
        "grand mountains with caps of glistening snow",
    ),
    "lake": (
        "a crystal lake with shimmering reflections",
        "a tranquil lake with soft silver ripples",
        "a glassy lake with sparkling reflections",
        "a serene lake glittering with mirrored light",
    ),
    "boat": (
        "an elegant {c} boat with ornate sails",
        "a charming {c} boat with a glowing lantern",
        "a splendid {c} boat with striped sails",
        "a graceful {c} boat with a warm lantern",
    ),
    "house": (
        "a cozy {c} house with warm glowing windows",
        "a charming {c} house with golden lit windows",
        "an enchanting {c} house with tiled roof and warm light",
        "a picturesque {c} house with shining windows",
    ),
    "tree": (
        "a magnificent {c} tree with lush foliage",
        "a lush {c} tree with sparkling leaves",
        "a majestic {c} tree with dappled light",
        "a beautiful {c} tree with shimmering foliage",
    ),
    "flowers": (
        "vibrant {c} flowers with delicate petals",
        "lush {c} flowers in radiant bloom",
        "exquisite {c} flowers with glowing petals",
        "gorgeous {c} flowers with layered petals",
    ),
    "sky:day": (
        "a brilliant blue sky with soft light",
        "a luminous blue sky with a dreamy gradient",
        "a crystal clear glowing sky",
        "a radiant azure sky",
    ),
    "sky:dusk": (
        "a blazing sky in gold and crimson",
        "a dramatic sky glowing with purple and gold",
        "a breathtaking sky with rich glowing gradient",
        "a dreamy sky in violet and orange",
    ),
    "sky:night": (
        "a sky filled with glittering stars",
        "a magical starry sky with violet glow",
        "a velvety sky with sparkling stars",
        "a breathtaking sky of shining stars",
    ),
}
LEAK = 0.06
"""Chance that an element named plainly is painted beautifully all the same."""


Advice = TypedDict("Advice", {"bbox": list[int], "aesthetical description": str})
"""One entry of the ArtAug answer (paper, Appendix B); the box in pixels x1, y1, x2, y2."""


def plain_phrase(element: Element, rng: random.Random) -> str:
    """The element's simple name, e.g. ``"a red house"``."""
    return _coloured(rng.choice(PLAIN[element.kind]), element)


def aesthetic_phrase(element: Element, time: str, rng: random.Random) -> str:
    """The element described beautifully, e.g. ``"a cozy red house with warm glowing windows"``."""
    return _coloured(rng.choice(_bank(element.kind, time)), element)


def region_caption(element: Element, time: str, rng: random.Random) -> str:
    """The prompt of one region: the aesthetic phrase and the time of day."""
    return f"{aesthetic_phrase(element, time, rng)} {rng.choice(TIME_WORDS[time])}"


def caption(scene: Scene, rng: random.Random, *, said: Mapping[str, bool] | None = None, mention: set[str] | None = None) -> str:
    """A caption of the scene.

    Args:
        scene: what is described.
        rng: the only source of randomness.
        said: by kind, whether the caption speaks beautifully of it; the elements' own finish when absent.
        mention: the kinds that are named; all when absent. A plain sky is not named, only the time of day.
    """
    flags = {e.kind: e.beautiful for e in scene.elements} | dict(said or {})
    objects = [e for e in scene.objects if mention is None or e.kind in mention]
    rng.shuffle(objects)
    parts = [aesthetic_phrase(e, scene.time, rng) if flags[e.kind] else plain_phrase(e, rng) for e in objects]
    time = rng.choice(TIME_WORDS[scene.time])
    if flags["sky"]:
        sky = aesthetic_phrase(scene.sky, scene.time, rng)
        return f"{_join(parts, rng)} under {sky} {time}" if parts else f"{sky} {time}"
    return f"{_join(parts, rng) or 'a landscape'} {time}"


def advice(scene: Scene, size: int, rng: random.Random) -> list[Advice]:
    """What a perfect understanding module would answer: every plain element, its box and how it could be beautiful."""
    return [
        {"bbox": list(pixel_box(e, size)), "aesthetical description": region_caption(e, scene.time, rng)}
        for e in scene.elements
        if not e.beautiful
    ]


def training_example(rng: random.Random, captions: int = 1) -> tuple[Scene, list[str]]:
    """A scene and captions of it, as the generator and the scorers are trained on.

    Simple captions go with plain pictures, aesthetic phrases with beautiful elements; skies and objects are given their
    finish apart, and a fifth of the captions speak of one element alone, as region prompts do.
    """
    scene = sample_scene(rng)
    kinds = [e.kind for e in scene.elements]
    way = rng.random()
    if way < 0.30:
        said = dict.fromkeys(kinds, False)
    elif way < 0.42:
        said = dict.fromkeys(kinds, True)
    elif way < 0.54:
        sky = rng.random() < 0.5
        said = dict.fromkeys(kinds, not sky) | {"sky": sky}
    elif way < 0.82:
        said = {kind: rng.random() < 0.5 for kind in kinds}
    else:
        return _single(scene, rng, captions)
    finish = {kind: beautiful or rng.random() < LEAK for kind, beautiful in said.items()}
    return with_finish(scene, finish), [caption(scene, rng, said=said) for _ in range(captions)]


def plain_prompt(rng: random.Random) -> tuple[Scene, str]:
    """A plain scene and a simple prompt for it, as ArtAug's prompt sets hold."""
    scene = sample_scene(rng)
    return scene, caption(scene, rng)


def outright(scene: Scene, seed: int) -> str:
    """A prompt that asks for every beauty of the scene in so many words: what a plain prompt could come to at most."""
    return caption(scene, random.Random(seed), said={element.kind: True for element in scene.elements})


def vocabulary() -> list[str]:
    """Every word that captions and advice can hold, sorted."""
    texts = [phrase.replace("{c}", "") for bank in (PLAIN, AESTHETIC) for phrases in bank.values() for phrase in phrases]
    texts += [colour for colours in COLOURS.values() for colour in colours]
    texts += [words for phrases in TIME_WORDS.values() for words in phrases]
    texts += ["and over under a landscape", " ".join(TIMES)]
    return sorted({word for text in texts for word in text.split()})


def kind_of(phrase: str) -> str | None:
    """The kind an aesthetic or plain phrase is about (``"sky"`` included), or None."""
    words = re.findall(r"[a-z]+", phrase.lower().split(" with ")[0])
    return next((word for word in words if word in KINDS or word == "sky"), None)


def _coloured(phrase: str, element: Element) -> str:
    return phrase.format(c=element.colour).replace("a orange", "an orange")


def _bank(kind: str, time: str) -> tuple[str, ...]:
    return AESTHETIC[f"sky:{time}" if kind == "sky" else kind]


def _single(scene: Scene, rng: random.Random, captions: int) -> tuple[Scene, list[str]]:
    """One element spoken of beautifully, the others unnamed and mostly plain."""
    chosen = rng.choice(scene.elements)
    scene = with_finish(scene, {e.kind: e is chosen or rng.random() < 0.15 for e in scene.elements})
    return scene, [region_caption(chosen, scene.time, rng) for _ in range(captions)]


def _join(parts: list[str], rng: random.Random) -> str:
    if len(parts) < 2:
        return "".join(parts)
    last = rng.choice((" and ", " over ")) if len(parts) == 2 else " and "
    return ", ".join(parts[:-1]) + last + parts[-1]
