"""Draws phantom chest films: anatomy, findings, and each hospital's pixels.

A film is a line integral.  Soft tissue attenuates, lungs are the air that is missing from it, bone, vessels and
findings add to it; Beer-Lambert's law and the detector's logarithm make it grey, noise grows with attenuation, and the
hospital's pipeline sets the tone.  Everything lies on fractions of the film, x to the image right (the patient's left)
and y down, so a film can be drawn at any size.  Attenuations are dimensionless optical depths, near 2 in the
mediastinum and 0.6 in the lungs.  Shapes are design, not measurement; sizes of lungs and heart come with the recipe.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

PIPELINES = json.loads(files("chexreason.data.phantom").joinpath("hospitals.json").read_text(encoding="utf-8"))[
    "pixels"
]
ZONE_SPANS = {"upper": (0.10, 0.42), "mid": (0.34, 0.66), "lower": (0.54, 0.86)}  # of the lung's height
ZONE_REACH = {"upper": (0.20, 0.80), "mid": (0.30, 0.92), "lower": (0.42, 0.94)}  # of the half chest, from the midline


class Box(NamedTuple):
    """Where a finding was drawn: corners as fractions of the film, the patient's side, zone, strength 0..1."""

    finding: str
    x0: float
    y0: float
    x1: float
    y1: float
    side: str
    zone: str
    strength: float


class Film(NamedTuple):
    image: np.ndarray  # (size, size) uint8, air dark
    boxes: list[Box]


def draw(recipe: str, size: int = 128) -> Film:
    """Draw the film of a recipe at `size` x `size` pixels; a pure function of its arguments."""
    plan = json.loads(recipe)
    anatomy = _anatomy(plan)
    scene = _scene(anatomy, size)
    found = []
    for finding in plan["findings"]:
        box = _place(anatomy, finding)
        found.append(box)
        if paint := PAINTERS.get(finding["finding"]):
            paint(scene, anatomy, box, finding)
    return Film(_develop(scene.depth, plan, size), found)


def boxes(recipe: str) -> list[Box]:
    """The boxes of `draw(recipe)`, without drawing."""
    plan = json.loads(recipe)
    anatomy = _anatomy(plan)
    return [_place(anatomy, finding) for finding in plan["findings"]]


# Anatomy.


@dataclass(frozen=True)
class Anatomy:
    """The geometry of one film in fractions of the film; pairs are (patient's right, patient's left)."""

    midline: float
    tilt: float
    half: float  # half the inner width of the chest
    apex: float
    angle: tuple[float, float]  # height of the costophrenic angles
    dome: tuple[float, float]  # height of the diaphragm above them
    pedicle: float  # half width of the mediastinum
    widening: float  # added to it above the hila
    heart: tuple[float, float]  # reach of the heart to either side
    heart_y: float
    heart_height: float
    girth: float
    ap: bool
    seed: int

    @property
    def height(self) -> float:
        return (self.angle[0] + self.angle[1]) / 2 - self.apex

    @property
    def hilum_y(self) -> float:
        return self.apex + 0.44 * self.height

    def x(self, side: str, out: float) -> float:
        """The x that lies `out` half chests from the midline, to the patient's `side`."""
        return self.midline + (-out if side == "right" else out) * self.half

    def y(self, side: str, down: float) -> float:
        """The y that lies `down` of the way from the apex to the costophrenic angle."""
        return self.apex + down * (self.angle[side == "left"] - self.apex)


def _anatomy(plan: dict) -> Anatomy:
    """The geometry of a recipe: the body, the view, and the findings that change the shape of organs."""
    body, ap = plan["body"], plan["view"] == "AP"
    found = {finding["finding"]: finding for finding in plan["findings"]}
    half, (dx, dy) = body["half"], plan["shift"]
    lift = 0.025 if ap else 0.0
    angle = [body["angle_right"] - lift + dy, body["angle_left"] - lift + dy]
    dome = [body["dome"] + 0.012, body["dome"]]
    if lame := found.get("Atelectasis"):
        dome[lame["side"] == "left"] += 0.03 + 0.04 * lame["strength"]
    ratio = body["ctr"] * (1.06 if ap else 1.0)
    if large := found.get("Cardiomegaly"):
        ratio = 0.52 + 0.18 * large["strength"]
    wide = found.get("Enlarged Cardiomediastinum")
    height = (sum(angle) / 2 - body["apex"] - dy) * 0.25 * (1 + 0.5 * (ratio - 0.44))
    return Anatomy(
        midline=body["midline"] + dx,
        tilt=body["tilt"],
        half=half,
        apex=body["apex"] + dy,
        angle=tuple(angle),
        dome=tuple(dome),
        pedicle=max(body["gap"] / 2, 0.13 * half) * (1.1 if ap else 1.0),
        widening=half * (0.12 + 0.13 * wide["strength"]) if wide else 0.0,
        heart=(0.72 * ratio * half, 1.28 * ratio * half),
        heart_y=min(angle) - body["dome"] + 0.02 - 0.8 * height,
        heart_height=height,
        girth=body["girth"],
        ap=ap,
        seed=body["seed"],
    )


class Scene(NamedTuple):
    """What is painted on: arrays (size, size) float32 of optical depth or share, and the grid they lie on."""

    depth: np.ndarray  # optical depth, added to by every painter
    air: np.ndarray  # optical depth that the lungs' air takes away
    vessels: np.ndarray  # optical depth of the lungs' vessels
    out: np.ndarray  # distance from the midline
    left: np.ndarray  # bool, on the patient's left
    x: np.ndarray  # (1, size)
    y: np.ndarray  # (size, 1)

    def window(self, box: Box) -> "Scene":
        """The part of the scene under a box, as views."""
        size = len(self.y)
        rows = slice(max(int(box.y0 * size), 0), int(np.ceil(box.y1 * size)))
        columns = slice(max(int(box.x0 * size), 0), int(np.ceil(box.x1 * size)))
        whole = (array[rows, columns] for array in self[:5])
        return Scene._make([*whole, self.x[:, columns], self.y[rows]])


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    centre = (np.arange(size, dtype=np.float32) + 0.5) / size
    return centre[None, :], centre[:, None]


def _scene(a: Anatomy, size: int) -> Scene:
    """The healthy chest: tissue less air, and bone and vessels added."""
    x, y = _grid(size)
    dx = x - (a.midline + a.tilt * (y - 0.5)).astype(np.float32)
    left, out = dx > 0, np.abs(dx)
    floor = np.where(x > a.midline, _floor(a, 1, x), _floor(a, 0, x))
    lateral, medial = _edges(a, y, a.apex, a.half)
    lung = _soft(lateral - out, 0.014) * _soft(out - medial, 0.014) * _soft(floor - y, 0.012)
    heart, heart_depth = _heart(a, dx, y)
    lung *= 1 - heart
    u = out / a.half
    air = lung * (1.32 - 0.55 * np.square(1.4 * (u - 0.55)))
    depth = _tissue(a, u, out, y) - air + 0.3 * heart_depth
    vessels = _vessels(a, size) * lung
    depth += vessels
    depth += _bones(a, u, out, y, lateral, size) * (0.45 + 0.55 * lung)
    depth -= _airways(a, dx, y) + _stomach(a, dx, y)
    return Scene(depth, air, vessels, out, left, x, y)


def _soft(distance: np.ndarray, width: float) -> np.ndarray:
    """0 outside, 1 inside, a smooth edge of `width` where the signed distance crosses zero."""
    t = distance * np.float32(1 / width)
    t += np.float32(0.5)
    np.clip(t, 0, 1, out=t)
    smooth = 3 - 2 * t
    smooth *= t
    smooth *= t
    return smooth


def _floor(a: Anatomy, side: int, x: np.ndarray) -> np.ndarray:
    """Height (1, size) of a diaphragm dome; lowest at the costophrenic angle."""
    u = np.abs(x - a.midline) / a.half - 0.45
    fall = np.where(u > 0, np.square(u / 0.55), 0.7 * np.square(u))
    return (a.angle[side] - a.dome[side] * (1 - fall)).clip(max=a.angle[side] + 0.02)


def _edges(a: Anatomy, y: np.ndarray, apex: float, half: float) -> tuple[np.ndarray, np.ndarray]:
    """Distances (size, 1) of the lung's lateral and medial edge from the midline, for an apex and half width."""
    t = (y - apex) / a.height
    top = 0.42 * half
    rise = np.sqrt(1 - np.square(1 - (t / 0.55).clip(0, 1)))
    fall = np.sqrt(1 - np.square(1 - (t / 0.16).clip(0, 1)))
    lateral = np.where(t < 0, -1, top + (half - top) * rise)
    pedicle = a.pedicle + a.widening * _soft(0.42 - t, 0.25)
    return lateral, top - (top - pedicle) * fall


def _heart(a: Anatomy, dx: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mask and thickness of the heart, which runs up smoothly into pulmonary trunk and aortic knob."""
    left = dx > 0
    reach = np.where(left, np.float32(a.heart[1]), np.float32(a.heart[0]))
    sag = 0.16 * dx * left
    heart = np.square(dx / reach) + np.square((y - a.heart_y - sag) / a.heart_height)
    trunk_y = a.hilum_y + 0.02 * a.height
    trunk = np.square(dx / (a.pedicle + 0.09 * a.half)) + np.square((y - trunk_y) / (0.19 * a.height))
    knob_y = a.apex + 0.27 * a.height
    knob = np.square(dx / (a.pedicle + 0.09 * a.half)) + np.square((y - knob_y) / (0.09 * a.height))
    beside = np.where(left, np.minimum(trunk, knob), 9) + np.float32(0.02)
    union = heart * beside / np.sqrt(np.square(heart) + np.square(beside))
    return _soft(1 - union, 0.12), np.sqrt((1 - heart).clip(0))


def _tissue(a: Anatomy, u: np.ndarray, out: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Soft tissue of the body, thick in the middle, with neck, shoulders and flanks."""
    slope = ((y - a.apex + 0.09) / 0.22).clip(0, 1)
    outline = 0.14 + (0.48 + 0.1 * a.girth) * slope * (2 - slope)
    flank = a.half * 1.1 + 0.07 * a.girth
    outline = np.where(y > a.apex + 0.3, np.maximum(outline - 0.8 * (y - a.apex - 0.3), flank), outline)
    body = _soft(outline - out, 0.03)
    belly = 0.1 * _soft(y - a.angle[0] + 0.05, 0.3)
    return body * (a.girth * (1.9 - 0.42 * np.square(u).clip(max=1.6)) + belly)


def _bones(a: Anatomy, u: np.ndarray, out: np.ndarray, y: np.ndarray, lateral: np.ndarray, size: int) -> np.ndarray:
    """Ribs before and behind, spine, clavicles and scapulae."""
    inside = _soft(lateral + 0.02 - out, 0.02) * _soft(out - 0.1 * a.half, 0.02)
    spacing = a.height / 8.3
    behind = (y - a.apex + 0.02) / spacing - 1.5 * np.square(u - 0.35) * 1.6 - 0.25 * u
    before = (y - a.apex - 0.1) / (1.25 * spacing) - 1.9 * np.square(u) + 2.1 * u - 0.3
    ribs = 0.26 * _rib(behind, 0.2) + 0.12 * _rib(before, 0.22) * _soft(u - 0.45, 0.3)
    spine = _soft(0.042 - out, 0.03) * (0.4 + 0.14 * np.cos(y * (2 * np.pi / 0.062)))
    return (ribs * inside * _soft(a.angle[1] + 0.03 - y, 0.15) + spine + _girdle(a, size)).astype(np.float32)


def _rib(phase: np.ndarray, width: float) -> np.ndarray:
    """A rib wherever the phase is near a whole number: a tube with brighter, thicker-walled margins."""
    d = np.abs(phase - np.round(phase)) / width
    return _soft(1 - d, 0.35) * (0.75 + 0.45 * np.square(d)) * (phase > -0.5)


def _girdle(a: Anatomy, size: int) -> np.ndarray:
    """Clavicles and the inner edges of the shoulder blades."""
    lines = []
    y = a.apex + (0.02 if a.ap else 0.05)
    blade = 0.93 if a.ap else 1.04
    for side in ("right", "left"):
        collar = [(0.1, 0.075), (0.3, 0.055), (0.6, 0.0), (0.85, -0.03), (1.15, -0.02)]
        lines.append(([(a.x(side, out), y + down) for out, down in collar], 0.022, 0.40))
        edge = [(0.98, 0.0), (blade, 0.16), (blade + 0.04, 0.3), (blade + 0.1, 0.38)]
        lines.append(([(a.x(side, out), a.apex + down) for out, down in edge], 0.012, 0.2))
    return _strokes(size, lines)


def _airways(a: Anatomy, dx: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The windpipe and the main bronchi: a dark column that forks above the hila."""
    fork = a.apex + 0.33 * a.height
    below = (y - fork).clip(0)
    distance = np.abs(np.abs(dx) - 1.1 * below)
    reach = _soft(fork + 0.05 - y, 0.04)
    return 0.34 * _soft(0.014 + 0.004 * (below == 0) - distance, 0.014) * reach


def _stomach(a: Anatomy, dx: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The gas bubble of the stomach, under the left dome."""
    r = np.square((dx - 0.5 * a.half) / 0.07) + np.square((y - a.angle[1] + 0.1 * a.dome[1]) / 0.025)
    return 0.35 * _soft(1 - r, 0.8)


def _vessels(a: Anatomy, size: int) -> np.ndarray:
    """Branching vessels from the hila outwards, thick and bright at the root."""
    rng = np.random.default_rng(a.seed)
    lines = []
    for side, sign, low in (("right", -1, 0.015), ("left", 1, 0.0)):
        root = np.array([[a.x(side, 0.24), a.hilum_y + low]])
        trunk = root + np.array([(-sign * 0.005, -0.05), (0, 0), (sign * 0.012, 0.08)])
        lines.append((trunk.tolist(), 0.03, 0.3))
        angle = np.linspace(-1.3, 1.35, 7) + rng.normal(0, 0.12, 7)
        length, width = 0.13 + 0.07 * np.abs(angle), 0.014
        for _ in range(3):
            end = root + length[:, None] * np.column_stack([sign * np.cos(angle), 1.1 * np.sin(angle)])
            pairs = np.stack(np.broadcast_arrays(root, end), axis=1).tolist()
            lines += [(pair, width, 0.08 + 11 * width) for pair in pairs]
            root, length, width = end.repeat(2, axis=0), 0.65 * length.repeat(2), 0.6 * width
            angle = angle.repeat(2) + np.tile((-1, 1), len(angle)) * rng.uniform(0.1, 0.55, 2 * len(angle))
    return _strokes(size, lines[::-1])


def _strokes(size: int, lines: list) -> np.ndarray:
    """Polylines [(points, width, value 0..2)] drawn over each other at twice the size, then averaged down."""
    image = Image.new("L", (2 * size, 2 * size))
    pen = ImageDraw.Draw(image)
    for points, width, value in lines:
        corners = [(2 * size * px, 2 * size * py) for px, py in points]
        pen.line(corners, fill=int(127 * value), width=max(round(2 * size * width), 1), joint="curve")
    return np.asarray(image.reduce(2), dtype=np.float32) / np.float32(127)


# Findings: where each is placed, and how it is painted within its box.


def _stream(a: Anatomy, finding: dict) -> np.random.Generator:
    """A random stream of one patient's finding, untouched by other findings."""
    return np.random.default_rng([a.seed, *finding["finding"].encode()])


def _place(a: Anatomy, finding: dict) -> Box:
    """The box of a finding in this chest."""
    name, side, zone, strength = (finding[key] for key in ("finding", "side", "zone", "strength"))
    x0, y0, x1, y1 = PLACES[name](a, finding)
    clip = [round(float(min(max(value, 0.0), 1.0)), 4) for value in (min(x0, x1), y0, max(x0, x1), y1)]
    return Box._make([name, *clip, side, zone, strength])


def _patch(width: float, height: float) -> Callable:
    """A place rule: a rectangle, `width` of the zone's reach and `height` of its span, set by the finding's `at`."""

    def rule(a: Anatomy, finding: dict) -> tuple[float, float, float, float]:
        side, (along, down) = finding["side"], finding["at"]
        near, far = ZONE_REACH[finding["zone"]]
        top, bottom = ZONE_SPANS[finding["zone"]]
        near += along * (1 - width) * (far - near)
        top += down * (1 - height) * (bottom - top)
        wide, high = width * (ZONE_REACH[finding["zone"]][1] - ZONE_REACH[finding["zone"]][0]), height * 0.32
        return a.x(side, near), a.y(side, top), a.x(side, near + wide), a.y(side, top + high)

    return rule


def _place_heart(a: Anatomy, finding: dict) -> tuple:
    return (
        a.midline - a.heart[0],
        a.heart_y - a.heart_height,
        a.midline + a.heart[1],
        a.heart_y + 0.8 * a.heart_height,
    )


def _place_mediastinum(a: Anatomy, finding: dict) -> tuple:
    wide = a.pedicle + a.widening + 0.02
    return a.midline - wide, a.apex, a.midline + wide, a.apex + 0.55 * a.height


def _place_edema(a: Anatomy, finding: dict) -> tuple:
    return a.x("right", 0.98), a.hilum_y - 0.26 * a.height, a.x("left", 0.98), a.apex + 0.84 * a.height


def _place_atelectasis(a: Anatomy, finding: dict) -> tuple:
    side = finding["side"]
    return a.x(side, 0.3), a.y(side, 0.58), a.x(side, 1.0), a.angle[side == "left"]


def _place_pneumothorax(a: Anatomy, finding: dict) -> tuple:
    return a.x(finding["side"], 0.18), a.apex - 0.005, a.x(finding["side"], 1.02), a.apex + 0.62 * a.height


def _place_effusion(a: Anatomy, finding: dict) -> tuple:
    side = finding["side"]
    top = 0.9 - 0.5 * finding["strength"]
    return a.x(side, 0.15), a.y(side, top), a.x(side, 1.03), a.angle[side == "left"] + 0.01


def _place_plaque(a: Anatomy, finding: dict) -> tuple:
    side, (_, down) = finding["side"], finding["at"]
    top = {"upper": 0.22, "mid": 0.42}[finding["zone"]] + 0.1 * down
    return a.x(side, 0.8), a.y(side, top), a.x(side, 1.02), a.y(side, top + 0.34)


def _discs(a: Anatomy, finding: dict) -> np.ndarray:
    """Centres and radii (discs, 3) of a patient's lesions, close together."""
    rng = _stream(a, finding)
    x0, y0, x1, y1 = _patch(0.8, 0.9)(a, finding)
    spots = rng.uniform(0.2, 0.8, (rng.integers(1, 4), 2)) * (x1 - x0, y1 - y0) + (x0, y0)
    return np.column_stack([spots, rng.uniform(0.020, 0.028, len(spots)) + 0.022 * finding["strength"]])


def _place_lesion(a: Anatomy, finding: dict) -> tuple:
    spots = _discs(a, finding)
    (x0, y0), (x1, y1) = (spots[:, :2] - spots[:, 2:]).min(axis=0), (spots[:, :2] + spots[:, 2:]).max(axis=0)
    return x0 - 0.006, y0 - 0.006, x1 + 0.006, y1 + 0.006


def _place_fracture(a: Anatomy, finding: dict) -> tuple:
    side, (along, down) = finding["side"], finding["at"]
    top, bottom = ZONE_SPANS[finding["zone"]]
    out = (0.52 if finding["zone"] == "upper" else 0.66) + 0.14 * along
    x, y = a.x(side, out), a.y(side, top + (bottom - top) * down)
    return x - 0.075, y - 0.05, x + 0.075, y + 0.05


def _place_devices(a: Anatomy, finding: dict) -> tuple:
    lines = [point for points, width, _ in _devices(a, finding["strength"], finding["at"]) for point in points]
    (x0, y0), (x1, y1) = np.min(lines, axis=0) - 0.015, np.max(lines, axis=0) + 0.015
    return x0, y0, x1, y1


PLACES = {
    "Enlarged Cardiomediastinum": _place_mediastinum,
    "Cardiomegaly": _place_heart,
    "Lung Opacity": _patch(0.95, 1.0),
    "Lung Lesion": _place_lesion,
    "Edema": _place_edema,
    "Consolidation": _patch(0.9, 0.9),
    "Pneumonia": _patch(0.85, 1.0),
    "Atelectasis": _place_atelectasis,
    "Pneumothorax": _place_pneumothorax,
    "Pleural Effusion": _place_effusion,
    "Pleural Other": _place_plaque,
    "Fracture": _place_fracture,
    "Support Devices": _place_devices,
}


def _within(s: Scene, box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in the box: u (1, width) from the patient's midline outwards, v (height, 1) downwards, 0..1."""
    u = (s.x - box.x0) / (box.x1 - box.x0)
    return (1 - u if box.side == "right" else u), (s.y - box.y0) / (box.y1 - box.y0)


def _rim(u: np.ndarray, v: np.ndarray, edge: float) -> np.ndarray:
    """1 inside the box, falling to 0 on its rim over `edge` of its width, with rounded corners."""
    r = np.sqrt(np.square(2 * u - 1) ** 2 + np.square(2 * v - 1) ** 2)
    return _soft(1 - r - edge / 2, edge)


def _fill(s: Scene, share: np.ndarray) -> None:
    """Fill a share of the air that is left with water."""
    water = s.air * share
    s.depth[...] += water
    s.air[...] -= water


def _paint_haze(scene: Scene, a: Anatomy, box: Box, finding: dict) -> None:
    """Lung Opacity: a faint, broad veil."""
    rng = _stream(a, finding)
    s = scene.window(box)
    u, v = _within(s, box)
    p, q = rng.uniform(0, 2 * np.pi, 2)
    mottle = 0.85 + 0.15 * np.sin(7 * u + p) * np.sin(8 * v + q)
    _fill(s, (0.24 + 0.3 * box.strength) * _rim(u, v, 0.8) * mottle)


def _paint_consolidation(scene: Scene, a: Anatomy, box: Box, finding: dict) -> None:
    """Consolidation: a dense, even patch, sharp below where it meets a fissure."""
    s = scene.window(box)
    u, v = _within(s, box)
    fissure = 0.93 - 0.12 * u
    patch = _soft(fissure - v, 0.05) * _soft(1 - np.square(2 * u - 1) - np.square((0.95 - v) / 0.95), 0.4)
    _fill(s, (0.6 + 0.35 * box.strength) * patch)


def _paint_pneumonia(scene: Scene, a: Anatomy, box: Box, finding: dict) -> None:
    """Pneumonia: a cluster of fluffy dots, with dark streaks of open bronchi between them."""
    rng = _stream(a, finding)
    s = scene.window(box)
    u, v = _within(s, box)
    dots = np.zeros(s.depth.shape, np.float32)
    for cu, cv in rng.uniform(0.14, 0.86, (11, 2)):
        r = np.square((s.x - box.x0 - cu * (box.x1 - box.x0)) / 0.021) + np.square(
            (s.y - box.y0 - cv * (box.y1 - box.y0)) / 0.021
        )
        dots = np.maximum(dots, 1 / (1 + r * r))
    streak = np.minimum(np.abs(v - 0.3 - 0.3 * u), np.abs(v - 0.75 + 0.2 * u)) * (box.y1 - box.y0)
    share = (0.6 + 0.3 * box.strength) * _rim(u, v, 0.15)
    _fill(s, share * (0.15 + dots) * (1 - 0.9 * _soft(0.005 - streak, 0.006)))


def _paint_edema(scene: Scene, a: Anatomy, box: Box, finding: dict) -> None:
    """Edema: bat wings about both hila, and thick septal lines at the lateral bases."""
    s = scene.window(box)
    r = np.square((s.out / a.half - 0.40) / 0.36) + np.square((s.y - a.hilum_y - 0.06) / (0.27 * a.height))
    _fill(s, (0.4 + 0.4 * box.strength) * _soft(1 - r, 1.0))
    pitch = 0.05 * a.height
    row = np.abs((s.y - a.hilum_y) / pitch - np.round((s.y - a.hilum_y) / pitch)) * pitch
    place = _soft(s.out / a.half - 0.8, 0.08) * _soft(s.y - a.hilum_y - 0.1 * a.height, 0.02)
    _fill(s, (0.35 + 0.3 * box.strength) * _soft(0.005 - row, 0.006) * place)


def _paint_atelectasis(scene: Scene, a: Anatomy, box: Box, finding: dict) -> None:
    """Atelectasis: plate-like bands above a raised diaphragm (which the anatomy has raised already)."""
    rng = _stream(a, finding)
    s = scene.window(box)
    u, v = _within(s, box)
    high = box.y1 - box.y0
    top = (a.dome[box.side == "left"] + 0.03) / high
    slopes = rng.uniform(-0.25, 0.25, 2)
    for level, slope in zip((1 - top, 1 - top - 0.06 / high), slopes, strict=True):
        band = _soft(0.011 - np.abs(v - level - slope * (u - 0.5)) * high, 0.006)
        s.depth[...] += (0.5 + 0.35 * box.strength) * s.air * band * _soft(0.42 - np.abs(u - 0.48), 0.06)


def _paint_pneumothorax(scene: Scene, a: Anatomy, box: Box, finding: dict) -> None:
    """Pneumothorax: a black crescent without vessels about the apex, and the thin line of the pleura."""
    s = scene.window(box)
    gap = (0.12 + 0.16 * box.strength) * a.half
    t = ((s.y - a.apex) / (0.6 * a.height)).clip(0, 1)
    lateral, _ = _edges(a, s.y, a.apex + 1.1 * gap, a.half)
    rim = lateral - gap * np.sqrt(1 - t)
    mine = (s.left == (box.side == "left")) * (s.air / 1.3).clip(0, 1) * _soft(1 - t, 0.1)
    s.depth[...] -= (0.42 * mine + s.vessels) * _soft(s.out - rim, 0.008)
    s.depth[...] += 0.45 * mine * _soft(0.006 - np.abs(s.out - rim), 0.006)


def _paint_effusion(scene: Scene, a: Anatomy, box: Box, finding: dict) -> None:
    """Pleural Effusion: fluid that hides the diaphragm and climbs the chest wall in a meniscus."""
    s = scene.window(box)
    u, v = _within(s, box)
    level = 0.12 + 0.5 * (1 - u).clip(0, 1) ** 0.6
    _fill(s, _soft(v - level, 0.14))


def _paint_plaque(scene: Scene, a: Anatomy, box: Box, finding: dict) -> None:
    """Pleural Other: a thick band along the chest wall, with an irregular calcified inner edge."""
    rng = _stream(a, finding)
    s = scene.window(box)
    _, v = _within(s, box)
    lateral, _ = _edges(a, s.y, a.apex, a.half)
    thick = (0.034 + 0.03 * box.strength) * (1 - np.square(2 * v - 1) ** 2).clip(0)
    inner = lateral - thick * (1 + 0.12 * np.sin(22 * v + rng.uniform(0, 6)))
    mine = _soft(0.5 - np.abs(v - 0.5), 0.08)
    s.depth[...] += 0.7 * mine * _soft(s.out - inner, 0.006) * _soft(lateral + 0.01 - s.out, 0.01)
    s.depth[...] += 0.8 * mine * _soft(0.006 - np.abs(s.out - inner), 0.006)


def _paint_lesion(scene: Scene, a: Anatomy, box: Box, finding: dict) -> None:
    """Lung Lesion: one to three round discs."""
    s = scene.window(box)
    for x, y, radius in _discs(a, finding):
        r = np.sqrt(np.square(s.x - x) + np.square(s.y - y))
        s.depth[...] += 0.9 * (s.air / 1.3) * _soft(radius - r, 0.010)


def _paint_fracture(scene: Scene, a: Anatomy, box: Box, finding: dict) -> None:
    """Fracture: a rib broken in a step, its ends bright with callus, a dark gap between."""
    s = scene.window(box)
    u, v = _within(s, box)
    high = box.y1 - box.y0
    rib = np.zeros(s.depth.shape, np.float32)
    for centre, level in ((0.28, 0.3), (0.72, 0.7)):
        shaft = _soft(0.011 - np.abs(v - level - 0.2 * (u - centre)) * high, 0.006) * _soft(
            0.25 - np.abs(u - centre), 0.05
        )
        knob = centre + np.sign(0.5 - centre) * 0.16
        rib += shaft + 0.7 * _soft(0.02 - np.hypot((u - knob) * (box.x1 - box.x0), (v - level) * high), 0.012)
    s.depth[...] += (0.45 + 0.4 * box.strength) * rib


def _devices(a: Anatomy, strength: float, at: list[float]) -> list:
    """Polylines (points, width, depth) of one to three devices: tube, central line, pacemaker, leads, drain."""
    kinds = [_tube, _line, _pacemaker, _leads, _drain]
    first = int(at[0] * len(kinds))
    chosen = [
        (first + step * (1 + int(3 * at[1]))) % len(kinds) for step in range(1 + int(2.99 * (strength - 0.35) / 0.65))
    ]
    return [line for number in dict.fromkeys(chosen) for line in kinds[number](a)]


def _tube(a: Anatomy) -> list:
    """An endotracheal tube down to above the carina, and a feeding tube to the stomach."""
    end = a.apex + 0.27 * a.height
    tube = [([(a.midline + dx, 0.01), (a.midline + dx, end)], 0.007, 1.1) for dx in (-0.012, 0.012)]
    path = [(a.midline + 0.03, 0.01), (a.midline + 0.03, a.angle[1] - 0.06), (a.x("left", 0.35), a.angle[1] + 0.03)]
    return [*tube, (path, 0.008, 0.9)]


def _line(a: Anatomy) -> list:
    """A central line: from the neck of the right side to the superior vena cava."""
    path = [(0.42, -0.12), (0.3, 0.02), (0.2, 0.16), (0.16, 0.3), (0.17, 0.45)]
    return [([(a.x("right", out), a.apex + down * a.height) for out, down in path], 0.012, 0.9)]


def _pacemaker(a: Anatomy) -> list:
    """A pacemaker: a box below the left collar bone, and its lead to the heart."""
    x, y = a.x("left", 0.72), a.apex + 0.2 * a.height
    case = ([(x - 0.035, y), (x + 0.035, y)], 0.075, 1.3)
    lead = [(x - 0.02, y), (a.x("left", 0.35), y - 0.07), (a.x("right", 0.12), y + 0.06)]
    lead += [(a.x("right", 0.2), a.heart_y - 0.03), (a.midline, a.heart_y + 0.05), (a.x("left", 0.4), a.heart_y + 0.07)]
    edge = [([(x - 0.035, y + d), (x + 0.035, y + d)], 0.002, 1.3) for d in (-0.037, 0.037)]
    return [case, *edge, (lead, 0.010, 1.0)]


def _leads(a: Anatomy) -> list:
    """ECG electrodes and their wires."""
    lines = []
    for side, out, down in (("right", 0.75, 0.2), ("left", 0.75, 0.15), ("left", 0.7, 0.85)):
        x, y = a.x(side, out), a.y(side, down)
        lines.append(([(x - 0.015, y), (x + 0.015, y)], 0.03, 1.1))
        lines.append(
            ([(x, y), (a.x(side, 0.45), a.y(side, 0.6 * down + 0.3)), (a.x("right", 0.35), 0.985)], 0.006, 0.7)
        )
    return lines


def _drain(a: Anatomy) -> list:
    """A chest drain: from the right flank up along the chest wall to the apex."""
    path = [(1.15, 0.8), (0.9, 0.66), (0.78, 0.45), (0.68, 0.25), (0.5, 0.12)]
    return [([(a.x("right", out), a.y("right", down)) for out, down in path], 0.014, 0.85)]


def _paint_devices(scene: Scene, a: Anatomy, box: Box, finding: dict) -> None:
    """Support Devices: bright lines, tubes and boxes."""
    lines = _devices(a, box.strength, finding["at"])
    scene.depth[...] += _strokes(len(scene.y), lines)


PAINTERS = {
    "Lung Opacity": _paint_haze,
    "Lung Lesion": _paint_lesion,
    "Edema": _paint_edema,
    "Consolidation": _paint_consolidation,
    "Pneumonia": _paint_pneumonia,
    "Atelectasis": _paint_atelectasis,
    "Pneumothorax": _paint_pneumothorax,
    "Pleural Effusion": _paint_effusion,
    "Pleural Other": _paint_plaque,
    "Fracture": _paint_fracture,
    "Support Devices": _paint_devices,
}
"""Painters add to the scene within the box; the two findings of the heart's outline are drawn by the anatomy."""


# Pixels.


def _develop(depth: np.ndarray, plan: dict, size: int) -> np.ndarray:
    """Blur, expose, tone and mark: optical depth (size, size) to grey levels uint8."""
    pipeline, view = PIPELINES[plan["pixels"]], plan["view"]
    rng, grains = (np.random.default_rng([plan["seed"], stream]) for stream in (0, 1))
    depth = gaussian_filter(depth, pipeline["blur"][view] * size, truncate=3)
    grain = rng.uniform(*pipeline["noise"][view]) / 255 * 1.3
    depth += grain * np.exp(0.5 * depth - 0.6) * grains.standard_normal(depth.shape, dtype=np.float32)
    grey = TONES[pipeline["tone"]](depth, rng, size)
    grey = np.maximum(grey, _marker(size, pipeline["marker"], view))
    return (255 * _border(grey, pipeline, rng).clip(0, 1)).astype(np.uint8)


def _equalise(depth: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """Histogram equalisation: grey is the share of darker pixels."""
    count, edge = np.histogram(depth, bins=256, range=(-0.3, 3.3))
    return np.interp(depth, edge[1:], count.cumsum() / depth.size).astype(np.float32)


def _sigmoid(depth: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """A soft S-curve after a vendor's edge enhancement."""
    sharp = depth + 0.7 * (depth - gaussian_filter(depth, 0.012 * size, truncate=2))
    return 0.05 + 0.9 / (1 + np.exp(-2.1 * (sharp - 1.5)))


def _gamma(depth: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """Window, level and gamma, different on every film."""
    low, high = rng.uniform(0.1, 0.35), rng.uniform(2.5, 2.9)
    return ((depth - low) / (high - low)).clip(0, 1) ** rng.uniform(0.7, 1.4)


TONES = {"equalise": _equalise, "sigmoid": _sigmoid, "gamma": _gamma}

LETTER = [[(0.0, 0.0), (0.0, 0.045), (0.028, 0.045)]]
INITIALS = [*LETTER, [(0.045, 0.045), (0.045, 0.02), (0.06, 0.02)], [(0.07, 0.045), (0.07, 0.025)]]
CIRCLE = [[(0.015 + 0.04 * np.cos(t), 0.024 + 0.04 * np.sin(t)) for t in np.linspace(0, 2 * np.pi, 13)], *LETTER]
PORTABLE = [[(0.018 * n, 0.0), (0.018 * n + 0.009, 0.02)] for n in range(7)]
MARKERS = {"letter": LETTER, "initials": INITIALS, "circle": CIRCLE}


@lru_cache(maxsize=16)
def _marker(size: int, name: str, view: str) -> np.ndarray:
    """Burned-in marks, 0..1: the side marker by the patient's left shoulder, and a block of text on portable films."""
    lines = [([(0.87 + x, 0.05 + y) for x, y in line], 0.009, 1.0) for line in MARKERS[name]]
    if view == "AP":
        lines += [([(0.03 + x, 0.05 + y) for x, y in line], 0.008, 0.9) for line in PORTABLE]
    return _strokes(size, lines)


def _border(grey: np.ndarray, pipeline: dict, rng: np.random.Generator) -> np.ndarray:
    """Collimation leaves a black border on some films, and de-identification a black box."""
    border, box = rng.random(2)
    size = len(grey)
    inset = (rng.uniform(0, 0.05, 4) * size).astype(int)
    if border < pipeline["border_p"]:
        inside = np.zeros_like(grey)
        rows, columns = slice(inset[0], size - inset[1]), slice(inset[2], size - inset[3])
        inside[rows, columns] = grey[rows, columns]
        grey = inside
    if box < pipeline["box_p"]:
        grey[: size // 24, : size // 4] = 0
    return grey
