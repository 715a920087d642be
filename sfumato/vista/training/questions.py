"""Questions about Vista pictures and their true answers, which the understanding module is trained and measured on."""

from __future__ import annotations

import json
import random
from dataclasses import replace

from sfumato.advice import REFINE, instruction
from sfumato.vista.phrases import TIME_WORDS, advice, caption, plain_phrase
from sfumato.vista.world import COLOURS, KINDS, TIMES, Element, Scene, sample_scene, with_finish

PLURAL = ("birds", "mountains", "flowers")
SMALL = ("boat", "birds", "cloud", "sun", "moon")
STRANGE = (
    *(
        "highly detailed",
        "oil painting",
        "concept art",
        "by a famous painter",
        "digital art",
        "sharp focus",
        "4k",
        "photo of",
        "unreal engine",
    ),
    *(
        "a dragon",
        "a castle",
        "an old man",
        "cinematic lighting",
        "watercolor",
        "anime style",
        "a cat",
        "bridge",
        "city street",
        "soft colors",
    ),
    *("fantasy", "volumetric fog", "in the style of monet", "HDR", "wide angle", "medieval village", "woman in a dress", "robot", "rainy"),
    *("ultra realistic", "masterpiece", "trending", "minimalist"),
)
"""What real prompts hold and the world does not."""
LOOSE = {
    "sun": ("sunshine",),
    "moon": ("moonlight",),
    "cloud": ("some clouds", "clouds"),
    "birds": ("a flock", "seagulls"),
    "mountains": ("hills", "a mountain range", "peaks"),
    "lake": ("a pond", "water", "the lakeside"),
    "boat": ("a sailboat", "a ship"),
    "house": ("a cottage", "a cabin", "a home"),
    "tree": ("trees", "a forest", "an oak"),
    "flowers": ("a meadow", "blossoms", "a garden"),
}
"""Words that a user may say and the generator does not know."""
LOOSE_TIMES = {
    "day": ("morning", "noon", "daytime"),
    "dusk": ("evening", "twilight", "golden hour"),
    "night": ("midnight", "in the dark", "nighttime"),
}
_PHRASES = [phrase for group in (*LOOSE.values(), *LOOSE_TIMES.values()) for phrase in group]
WORDS = sorted({word for text in (*_PHRASES, "is are there the it in this picture yes no sky beautiful plain") for word in text.split()})
"""Words of questions and loose prompts, beside the world's vocabulary."""


def mixed_scene(rng: random.Random) -> Scene:
    """A scene whose elements have their finish apart; a third are simple pictures, small kinds come often."""
    kinds = (rng.choice(SMALL),) if rng.random() < 0.5 else (rng.choice(KINDS),)
    scene = sample_scene(rng, kinds=kinds)
    way = rng.random()
    if way < 0.35:
        share, sky = 0.06, rng.random() < 0.06
    elif way < 0.45:
        share, sky = 0.95, True
    else:
        share, sky = rng.choice((0.3, 0.5, 0.7)), rng.random() < 0.5
    return with_finish(scene, {e.kind: sky if e.kind == "sky" else rng.random() < share for e in scene.elements})


def loose_caption(scene: Scene, rng: random.Random) -> str:
    """A prompt that the picture may have been painted from: mostly plain, at times wrong about it, at times in strange words."""
    way = rng.random()
    said = dict.fromkeys((e.kind for e in scene.elements), False)
    if way < 0.2:
        said = {e.kind: e.beautiful for e in scene.elements}
    elif way < 0.35:
        said = {e.kind: rng.random() < 0.3 for e in scene.elements}
    elements = tuple(_other_colour(e, rng) if e.colour and rng.random() < 0.06 else e for e in scene.elements)
    mention = None
    if rng.random() < 0.12 and len(scene.objects) > 1:
        left_out = rng.choice(scene.objects)
        mention = {e.kind for e in scene.objects if e is not left_out}
    elif rng.random() < 0.2:
        extra = rng.choice(sample_scene(rng, time=scene.time, count=1).objects)
        if scene.find(extra.kind) is None:
            elements += (extra,)
            said[extra.kind] = False
    text = caption(replace(scene, elements=elements), rng, said=said, mention=mention)
    for _ in range(rng.randint(1, 3) if rng.random() < 0.45 else 0):
        text = f"{text}, {_strange(rng)}" if rng.random() < 0.7 else f"{_strange(rng)}, {text}"
    return text


def grounding(scene: Scene, rng: random.Random, size: int = 64) -> tuple[str, str]:
    """The paper's instruction and the ArtAug JSON of every plain element."""
    return instruction(loose_caption(scene, rng)), json.dumps(advice(scene, size, rng), separators=(",", ":"))


def yes_or_no(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A question of existence, finish, colour or time, and ``"yes"`` or ``"no"``, each about half of the time."""
    way = rng.random()
    if way < 0.30:
        kind = rng.choice([e.kind for e in scene.objects]) if rng.random() < 0.4 else rng.choice(KINDS)
        where = rng.choice(("", "", " in the picture"))
        named = _named(kind)
        question = f"{_verb(kind)} there {named}{where}?"
        return question, _answer(scene.find(kind) is not None)
    if way < 0.65:
        element = rng.choice(scene.elements)
        word = rng.choice(("beautiful", "beautiful", "plain"))
        return f"{_verb(element.kind)} the {element.kind} {word}?", _answer(element.beautiful == (word == "beautiful"))
    if way < 0.75:
        time = scene.time if rng.random() < 0.45 else rng.choice(TIMES)
        return f"is it {time}?", _answer(time == scene.time)
    return colour_question(scene, rng)


def colour_question(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A question of an object's colour; of the sky's finish where nothing has a colour."""
    coloured = [e for e in scene.objects if e.colour]
    if not coloured:
        return "is the sky beautiful?", _answer(scene.sky.beautiful)
    element = rng.choice(coloured)
    colour = element.colour if rng.random() < 0.5 else rng.choice(COLOURS[element.kind])
    if rng.random() < 0.5:
        return f"{_verb(element.kind)} the {element.kind} {colour}?", _answer(colour == element.colour)
    named = plain_phrase(replace(element, colour=colour), rng)
    return f"{_verb(element.kind)} there {named}?", _answer(colour == element.colour)


def refinement(rng: random.Random) -> tuple[str, str]:
    """A prompt and its refinement: a clear one stays as it is; loose words, a missing time or colour are made definite."""
    asked, clear = _worded(sample_scene(rng), rng)
    return REFINE + asked, clear


def loose_prompt(rng: random.Random) -> tuple[Scene, str]:
    """A scene and a prompt for it that leaves something open, as people's prompts do."""
    while True:
        scene = sample_scene(rng)
        asked, clear = _worded(scene, rng)
        if asked != clear:
            return scene, asked


def _worded(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """The scene in words that may be loose, and in clear ones; what is clear already is left word for word."""
    order = list(scene.objects)
    rng.shuffle(order)
    loose = rng.random() < 0.6
    asked, clear = [], []
    for element in order:
        way = rng.random() if loose else 1.0
        plain = plain_phrase(element, rng)
        if way < 0.35:
            element = replace(element, colour=COLOURS[element.kind][0]) if element.colour else element
            asked.append(rng.choice(LOOSE[element.kind]))
            clear.append(plain_phrase(element, random.Random(0)))
        elif way < 0.55 and element.colour:
            element = replace(element, colour=COLOURS[element.kind][0])
            asked.append(element.kind if element.kind in PLURAL else f"a {element.kind}")
            clear.append(plain_phrase(element, random.Random(0)))
        else:
            asked.append(plain)
            clear.append(plain)
    said = meant = rng.choice(TIME_WORDS[scene.time])
    if loose and rng.random() < 0.35:
        said, meant = ", " + rng.choice(LOOSE_TIMES[scene.time]), TIME_WORDS[scene.time][0]
    join = " over " if len(order) == 2 and rng.random() < 0.5 else " and "
    commas = loose and rng.random() < 0.4
    return _sentence(asked, ", " if commas else join, said), _sentence(clear, " and " if commas else join, meant)


def _sentence(parts: list[str], join: str, time: str) -> str:
    listed = ", ".join(parts[:-1]) + (join if len(parts) > 1 else "") + parts[-1]
    return listed + time if time.startswith(",") else f"{listed} {time}"


def _answer(yes: bool) -> str:
    return "yes" if yes else "no"


def _verb(kind: str) -> str:
    return "are" if kind in PLURAL else "is"


def _named(kind: str) -> str:
    return kind if kind in PLURAL else f"a {kind}"


def _other_colour(element: Element, rng: random.Random) -> Element:
    return replace(element, colour=rng.choice(COLOURS[element.kind]))


def _strange(rng: random.Random) -> str:
    if rng.random() < 0.6:
        return rng.choice(STRANGE)
    return " ".join("".join(rng.choice("etaoinshrdlucmfwypvbgk") for _ in range(rng.randint(2, 9))) for _ in range(rng.randint(1, 2)))
