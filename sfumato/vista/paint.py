"""How each kind of element is painted, plain and beautiful. Both finishes cover the same shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from sfumato.vista.canvas import Canvas, Floats, horizontal, vertical

Shape = dict[str, Any]


def _rgb(red: int, green: int, blue: int) -> Floats:
    return np.array((red, green, blue), np.float32) / 255


def _blend(a: Floats, b: Floats, share: float) -> Floats:
    return a + (b - a) * share


COLOUR = {
    "red": _rgb(205, 52, 48), "white": _rgb(238, 236, 230), "blue": _rgb(66, 110, 205), "yellow": _rgb(240, 198, 58),
    "green": _rgb(58, 132, 58), "orange": _rgb(226, 122, 38), "pink": _rgb(238, 128, 172),
}  # fmt: skip
WHITE, GOLD, LAMP = _rgb(255, 255, 255), _rgb(255, 205, 90), _rgb(255, 214, 120)
PLAIN_SKY = {"day": _rgb(150, 196, 232), "dusk": _rgb(226, 164, 134), "night": _rgb(38, 42, 80)}
PLAIN_GROUND = {"day": _rgb(128, 172, 92), "dusk": _rgb(136, 114, 76), "night": _rgb(38, 56, 54)}
SKY = {
    "day": ((0.0, _rgb(36, 100, 215)), (0.6, _rgb(115, 188, 250)), (1.0, _rgb(242, 249, 255))),
    "dusk": ((0.0, _rgb(66, 38, 120)), (0.45, _rgb(215, 78, 125)), (0.75, _rgb(255, 140, 68)), (1.0, _rgb(255, 224, 132))),
    "night": ((0.0, _rgb(8, 8, 42)), (0.55, _rgb(36, 26, 100)), (1.0, _rgb(112, 72, 168))),
}
GROUND = {
    "day": (_rgb(158, 212, 92), _rgb(40, 118, 46)),
    "dusk": (_rgb(205, 150, 82), _rgb(74, 54, 60)),
    "night": (_rgb(66, 96, 112), _rgb(12, 30, 40)),
}
PLAIN_LIGHT = {"day": _rgb(255, 255, 255), "dusk": _rgb(238, 200, 184), "night": _rgb(168, 172, 210)}
LIGHT = {"day": _rgb(255, 255, 255), "dusk": _rgb(255, 228, 208), "night": _rgb(196, 196, 226)}


def _sky(canvas: Canvas, shape: Shape, colour: str | None, beautiful: bool, time: str, horizon: float) -> None:
    _, x, y = canvas.window(0, 0, 1, 1)
    ground = (((y - horizon) * canvas.size) + 0.5).clip(0, 1)
    if not beautiful:
        canvas.pixels[:] = (PLAIN_SKY[time] + ground * (PLAIN_GROUND[time] - PLAIN_SKY[time]))[:, None]
        return
    at = [stop for stop, _ in SKY[time]]
    above = np.stack([np.interp(y[:, 0] / horizon, at, [c[i] for _, c in SKY[time]]) for i in range(3)], 1).astype(np.float32)
    near, far = GROUND[time]
    below = near + (far - near) * ((y - horizon) / (1 - horizon)).clip(0, 1)
    canvas.pixels[:] = (above + ground * (below - above))[:, None]
    if time == "night":
        canvas.glows([(sx, sy, 0.009 + 0.006 * s) for sx, sy, s in shape["stars"]], _rgb(255, 250, 235), 1.0)


def _mountains(canvas: Canvas, shape: Shape, colour: str | None, beautiful: bool, time: str, horizon: float) -> None:
    peaks = shape["peaks"]
    left, right = min(x - h / s for x, h, s in peaks), max(x + h / s for x, h, s in peaks)
    where, x, y = canvas.window(left, horizon - max(h for _, h, _ in peaks), right, horizon)
    ridges = np.stack([h - s * np.abs(x[0] - px) for px, h, s in peaks])
    ridge, peak = ridges.max(0), ridges.argmax(0)
    alpha = ((y - horizon + ridge) * (canvas.size * 0.75) + 0.5).clip(0, 1) * ((horizon - y) * canvas.size + 0.5).clip(0, 1) * (ridge > 0)
    if not beautiful:
        canvas.cover(where, alpha, _rgb(112, 118, 136) * PLAIN_LIGHT[time])
        return
    light = LIGHT[time]
    shade = ((x[0] - np.array([p[0] for p in peaks])[peak]) * 40 + 0.5).clip(0, 1)[None, :, None].astype(np.float32)
    rock = _blend(_rgb(152, 150, 194) * light, _rgb(66, 62, 112) * light, 1.0) * shade + _rgb(152, 150, 194) * light * (1 - shade)
    rock = np.broadcast_to(rock, (y.shape[0], x.shape[1], 3))
    mist = (((y - horizon + 0.09) / 0.09).clip(0, 1) * 0.5)[..., None]
    haze = {"day": _rgb(225, 235, 250), "dusk": _rgb(255, 190, 150), "night": _rgb(120, 110, 180)}[time]
    rock = rock + (haze - rock) * mist
    tops = np.array([h for _, h, _ in peaks])[peak]
    line = horizon - 0.56 * tops + 0.018 * np.sin(x[0] * 75)
    snow = (((line - y) * canvas.size * 0.8) + 0.5).clip(0, 1)[..., None]
    white = (WHITE * (1 - shade) + _rgb(160, 182, 236) * shade) * np.maximum(light, 0.85)
    canvas.cover(where, alpha.astype(np.float32), (rock + (white - rock) * snow).astype(np.float32))


def _sun(canvas: Canvas, shape: Shape, colour: str | None, beautiful: bool, time: str, horizon: float) -> None:
    sx, sy, r = shape["x"], shape["y"], shape["r"]
    if not beautiful:
        canvas.ellipse(sx, sy, r, r, _rgb(242, 206, 66) if time == "day" else _rgb(232, 98, 48))
        return
    glow, rim = (_rgb(255, 240, 160), _rgb(255, 212, 70)) if time == "day" else (_rgb(255, 196, 90), _rgb(255, 150, 40))
    reach = 3.0 * r
    where, x, y = canvas.window(sx - reach, sy - reach, sx + reach, sy + reach)
    distance = np.sqrt((x - sx) ** 2 + (y - sy) ** 2)
    rays = np.exp(-((distance / (1.7 * r)) ** 2)) * 0.8
    rays += 0.6 * np.exp(-distance / (1.5 * r)) * (np.cos(np.arctan2(y - sy, x - sx) * 8) * 2).clip(0, 1)
    canvas.cover(where, (rays * ((reach - distance) * 8).clip(0, 1)).clip(0, 1), glow, solid=False)
    share = (distance / r).clip(0, 1)[..., None]
    canvas.cover(where, ((r - distance) * canvas.size + 0.5).clip(0, 1), _rgb(255, 255, 238) + (rim - _rgb(255, 255, 238)) * share**2)


def _moon(canvas: Canvas, shape: Shape, colour: str | None, beautiful: bool, time: str, horizon: float) -> None:
    mx, my, r = shape["x"], shape["y"], shape["r"]
    if beautiful:
        canvas.glows([(mx, my, 1.9 * r)], _rgb(205, 218, 255), 0.62)
    where, x, y = canvas.window(mx - r, my - r, mx + r, my + r)
    inside = r - np.sqrt((x - mx) ** 2 + (y - my) ** 2)
    if colour == "crescent":
        inside = np.minimum(inside, np.sqrt((x - mx - 0.62 * r) ** 2 + (y - my + 0.2 * r) ** 2) - 0.82 * r)
    alpha = (inside * canvas.size + 0.5).clip(0, 1)
    if not beautiful:
        canvas.cover(where, alpha, _rgb(196, 196, 190) * (PLAIN_LIGHT[time] * 0.3 + 0.7))
        return
    disc = _rgb(255, 255, 250) + (_rgb(240, 224, 176) - _rgb(255, 255, 250)) * (((x - mx) + (y - my)) / (2 * r) + 0.5).clip(0, 1)[..., None]
    for cx, cy, q in ((-0.35, -0.2, 0.24), (0.3, 0.32, 0.28), (0.12, -0.45, 0.16)):
        crater = ((q * r - np.sqrt((x - mx - cx * r) ** 2 + (y - my - cy * r) ** 2)) * canvas.size + 0.5).clip(0, 1)[..., None] * 0.55
        disc = disc + (_rgb(186, 182, 172) - disc) * crater
    canvas.cover(where, alpha, disc)


def _cloud(canvas: Canvas, shape: Shape, colour: str | None, beautiful: bool, time: str, horizon: float) -> None:
    cx, cy, w, h = shape["x"], shape["y"], shape["w"], shape["h"]
    where, x, y = canvas.window(cx - w, cy - h, cx + w, cy + h)
    inside = np.stack(
        [
            (1 - np.sqrt(((x - cx - px * w) / (pw * w)) ** 2 + ((y - cy - py * h) / (ph * h)) ** 2)) * ph * h
            for px, py, pw, ph in shape["puffs"]
        ]
    ).max(0)
    alpha = (inside * canvas.size + 0.5).clip(0, 1)
    if not beautiful:
        canvas.cover(where, alpha, _rgb(214, 216, 222) * (PLAIN_LIGHT[time] * 0.75 + 0.25))
        return
    top, bottom, rim = {
        "day": (_rgb(255, 255, 255), _rgb(120, 150, 220), _rgb(255, 236, 180)),
        "dusk": (_rgb(255, 226, 160), _rgb(178, 68, 128), _rgb(255, 244, 180)),
        "night": (_rgb(214, 216, 252), _rgb(70, 64, 136), _rgb(240, 244, 255)),
    }[time]
    share = ((y - cy + 0.7 * h) / (1.4 * h)).clip(0, 1)[..., None]
    edge = (1 - inside * 40).clip(0, 1)[..., None] * (1.3 - 1.3 * share).clip(0, 1)
    body = top + (bottom - top) * share
    canvas.cover(where, alpha, body + (rim - body) * edge)


def _birds(canvas: Canvas, shape: Shape, colour: str | None, beautiful: bool, time: str, horizon: float) -> None:
    plain = _rgb(104, 106, 132) if time == "night" else _rgb(46, 46, 54)
    for bx, by, w in shape["flock"]:
        where, x, y = canvas.window(bx - w, by - 0.5 * w, bx + w, by + 0.5 * w)
        along = np.abs(x - bx) / w
        spine = by + 0.3 * w - 0.62 * w * np.sin(along.clip(0, 1) * 2.2)
        thick = w * (0.26 - 0.12 * along)
        alpha = ((thick - np.abs(y - spine)) * canvas.size + 0.5).clip(0, 1) * ((1 - along) * (w * canvas.size) + 0.5).clip(0, 1)
        wing = WHITE + (_rgb(255, 150, 20) - WHITE) * (along.clip(0, 1) ** 1.2)[..., None]
        canvas.cover(where, alpha.astype(np.float32), np.broadcast_to(wing, (*alpha.shape, 3)) if beautiful else plain)


def _lake(canvas: Canvas, shape: Shape, colour: str | None, beautiful: bool, time: str, horizon: float) -> None:
    lx, ly, a, b, phase = (shape[key] for key in ("x", "y", "a", "b", "phase"))
    where, x, y = canvas.window(lx - a, ly - b, lx + a, ly + b)
    distance = np.sqrt(((x - lx) / a) ** 2 + ((y - ly) / b) ** 2)
    alpha = ((1 - distance) * (b * canvas.size) + 0.5).clip(0, 1)
    if not beautiful:
        canvas.cover(where, alpha, {"day": _rgb(88, 140, 194), "dusk": _rgb(134, 112, 142), "night": _rgb(48, 66, 116)}[time])
        return
    rows = ((horizon - (y[:, 0] - ly + b) / (2 * b) * horizon * 0.95) * canvas.size).clip(0, horizon * canvas.size - 1).astype(int)
    mirror = canvas.pixels[rows[:, None], np.arange(where[1].start, where[1].stop)[None]]
    water, spark = {
        "day": (_rgb(40, 140, 220), _rgb(244, 252, 255)),
        "dusk": (_rgb(196, 104, 130), _rgb(255, 232, 170)),
        "night": (_rgb(40, 62, 160), _rgb(206, 218, 255)),
    }[time]
    surface = 0.55 * mirror + 0.45 * water
    ripple = ((np.sin(y * 110 + phase + 1.6 * np.sin(x * 12 + phase)) - 0.45) * 2.5).clip(0, 1) * (1.1 - distance).clip(0, 1) * 0.55
    rim = ((distance - 0.9) * 10).clip(0, 1) * 0.55
    canvas.cover(where, alpha, surface + (spark - surface) * np.maximum(ripple, rim)[..., None])


def _boat(canvas: Canvas, shape: Shape, colour: str | None, beautiful: bool, time: str, horizon: float) -> None:
    bx, by, w, h = shape["x"], shape["y"], shape["w"], shape["h"]
    light = (LIGHT if beautiful else PLAIN_LIGHT)[time]
    cloth = COLOUR[colour or "white"] * light
    hull = [(bx - w, by), (bx + w, by), (bx + 0.62 * w, by + 0.4 * w), (bx - 0.62 * w, by + 0.4 * w)]
    main = [(bx - 0.04 * w, by - h), (bx - 0.04 * w, by - 0.1 * w), (bx - 0.85 * w, by - 0.1 * w)]
    jib = [(bx + 0.1 * w, by - 0.85 * h), (bx + 0.1 * w, by - 0.1 * w), (bx + 0.8 * w, by - 0.1 * w)]
    if not beautiful:
        for sail in (main, jib):
            canvas.polygon(sail, cloth)
        canvas.polygon(hull, _rgb(112, 74, 46) * light)
        return
    canvas.glows([(bx, by + 0.75 * w, 0.5 * w)], cloth, 0.5)
    pale = _blend(cloth, WHITE, 0.5)

    def striped(x: Floats, y: Floats) -> Floats:
        fade = ((y - by + h) / h).clip(0, 1)[..., None]
        tone = pale + (cloth * 0.8 - pale) * fade
        return np.broadcast_to(
            np.where((np.sin((y - by) * 2 * math.pi / (0.5 * w)) > 0.2)[..., None], tone * 0.55 + 0.45, tone), (y.shape[0], x.shape[1], 3)
        )

    for sail in (main, jib):
        canvas.polygon(sail, striped)
    canvas.polygon(hull, vertical(_rgb(206, 132, 70) * light, _rgb(84, 44, 30) * light, by, by + 0.4 * w))
    canvas.glows([(bx + 0.7 * w, by - 0.1 * w, 0.36 * w)], LAMP, 1.0)


def _house(canvas: Canvas, shape: Shape, colour: str | None, beautiful: bool, time: str, horizon: float) -> None:
    hx, base, w, h, rise = (shape[key] for key in ("x", "base", "w", "h", "roof"))
    light = (LIGHT if beautiful else PLAIN_LIGHT)[time]
    wall = COLOUR[colour or "white"] * light
    eaves = 1.25 * w
    body = [(hx - w, base - h), (hx + w, base - h), (hx + w, base), (hx - w, base)]
    roof = [(hx - eaves, base - h), (hx + eaves, base - h), (hx, base - h - rise)]
    door = [(hx - 0.17 * w, base - 0.5 * h), (hx + 0.17 * w, base - 0.5 * h), (hx + 0.17 * w, base), (hx - 0.17 * w, base)]
    q = 0.25 * w
    panes = [
        [(x - q, y - q), (x + q, y - q), (x + q, y + q), (x - q, y + q)]
        for x, y in ((hx - 0.56 * w, base - 0.58 * h), (hx + 0.56 * w, base - 0.58 * h))
    ]
    if not beautiful:
        dark = _rgb(58, 56, 64) * light
        canvas.polygon(body, wall)
        canvas.polygon(roof, _rgb(116, 74, 60) * light)
        for hole in (door, *panes):
            canvas.polygon(hole, dark)
        return
    canvas.glows([(hx - 0.6 * w, base, 0.7 * w), (hx + 0.6 * w, base, 0.7 * w)], LAMP, 0.4)
    canvas.polygon(body, horizontal(_blend(wall, _rgb(255, 245, 215), 0.3), wall * 0.7, hx - w, hx + w))

    def tiles(x: Floats, y: Floats) -> Floats:
        share = ((x - hx + eaves) / (2 * eaves)).clip(0, 1)[..., None]
        tone = (_rgb(226, 120, 70) + (_rgb(120, 52, 54) - _rgb(226, 120, 70)) * share) * light
        return np.where((np.sin((y - base) * 2 * math.pi / (0.36 * rise)) > 0.2)[..., None], tone * 0.68, tone)

    canvas.polygon(roof, tiles)
    canvas.polygon(door, vertical(_rgb(170, 104, 56), _rgb(96, 54, 36), base - 0.5 * h, base))
    canvas.glows([(hx - 0.56 * w, base - 0.58 * h, 0.34 * w), (hx + 0.56 * w, base - 0.58 * h, 0.34 * w)], LAMP, 0.8)
    for pane in panes:
        canvas.polygon(pane, vertical(_rgb(255, 252, 200), _rgb(255, 196, 70), base - 0.58 * h - q, base - 0.58 * h + q))


def _tree(canvas: Canvas, shape: Shape, colour: str | None, beautiful: bool, time: str, horizon: float) -> None:
    tx, base, r, ty = shape["x"], shape["base"], shape["r"], shape["y"]
    light = (LIGHT if beautiful else PLAIN_LIGHT)[time]
    leaf, w = COLOUR[colour or "green"] * light, 0.18 * r
    trunk = [(tx - w, ty), (tx + w, ty), (tx + 1.25 * w, base), (tx - 1.25 * w, base)]
    if not beautiful:
        canvas.polygon(trunk, _rgb(100, 72, 48) * light)
        canvas.ellipse(tx, ty, r, r, leaf)
        return
    canvas.ellipse(tx, base, 1.1 * r, 0.02, _rgb(16, 24, 26), solid=False, alpha=0.4)
    canvas.polygon(trunk, horizontal(_rgb(182, 128, 78) * light, _rgb(64, 42, 36) * light, tx - w, tx + w))
    bright = _blend(leaf, _rgb(255, 255, 180), 0.55)

    def shaded(x: Floats, y: Floats) -> Floats:
        share = (0.5 - ((x - tx) + (y - ty)) / (2.4 * r)).clip(0, 1)[..., None]
        return leaf * 0.5 + (bright - leaf * 0.5) * share

    canvas.ellipse(tx, ty, r, r, leaf * 0.45)
    canvas.discs([(tx + lx * r, ty + ly * r, q * r) for lx, ly, q in shape["leaves"]], shaded)
    canvas.discs(
        [(tx + (0.85 * lx - 0.12) * r, ty + (0.85 * ly - 0.14) * r, 0.11 * r) for lx, ly, _ in shape["leaves"]],
        _blend(bright, WHITE, 0.5),
        solid=False,
        alpha=0.9,
    )


def _flowers(canvas: Canvas, shape: Shape, colour: str | None, beautiful: bool, time: str, horizon: float) -> None:
    heads, r, ground = shape["heads"], shape["r"], shape["ground"]
    light = np.maximum(LIGHT[time], 0.88) if beautiful else PLAIN_LIGHT[time]
    petal = COLOUR[colour or "white"] * light
    stem = (_rgb(70, 196, 70) if beautiful else _rgb(56, 104, 52)) * light
    for x, y in heads:
        canvas.polygon([(x - 0.009, y), (x + 0.009, y), (x + 0.009, ground), (x - 0.009, ground)], stem)
    if not beautiful:
        canvas.discs([(x, y, r) for x, y in heads], petal)
        return
    canvas.glows([(x, y, 1.5 * r) for x, y in heads], _blend(petal, WHITE, 0.3), 0.4)
    canvas.discs([(x, y, r) for x, y in heads], petal * 0.62)
    angles = [k * 2 * math.pi / 5 - math.pi / 2 for k in range(5)]
    canvas.discs(
        [(x + math.cos(a) * 0.58 * r, y + math.sin(a) * 0.58 * r, 0.42 * r) for x, y in heads for a in angles], _blend(petal, WHITE, 0.4)
    )
    canvas.discs([(x, y, 0.34 * r) for x, y in heads], _rgb(206, 92, 24) if colour == "yellow" else _rgb(255, 222, 70))


Painter = Callable[[Canvas, Shape, str | None, bool, str, float], None]
PAINTERS: dict[str, Painter] = {
    "sky": _sky, "sun": _sun, "moon": _moon, "cloud": _cloud, "birds": _birds, "mountains": _mountains,
    "lake": _lake, "boat": _boat, "house": _house, "tree": _tree, "flowers": _flowers,
}  # fmt: skip
