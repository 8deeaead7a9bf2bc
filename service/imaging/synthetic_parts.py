"""Draws machined flanges as a camera over a conveyor belt would see them, whole or with one known defect: the images of
`tamis demo`.

All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from models.detector import Float32Array, UInt8Array

DEFECTS = ("scratch", "stain", "chip", "missing_hole", "wrong_hole", "dent", "fibre")

# Lengths of the part in pixels, for an image of 480 pixels on its shorter side.
DRAWN_FOR = 480.0
OUTER, HUB, BORE = 188.0, 98.0, 56.0
BOLT_CIRCLE, BOLT, COUNTERSINK, BOLTS = 143.0, 15.0, 20.0, 6
STAMP = "TF·40 H7"

LIGHT = np.deg2rad(-128.0)  # where the lamp stands, as an angle in the image: above, to the left


@dataclass(frozen=True)
class Drawn:
    """An image, uint8 `(H, W, 3)` RGB, and where its defect is, bool `(H, W)`."""

    image: UInt8Array
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Pose:
    x: float
    y: float
    angle: float
    scale: float

    def at(self, radius: float, angle: float) -> tuple[float, float]:
        """Return x, y in pixels of the point of the part at `radius` (part lengths) and `angle` (radians)."""
        turned, reach = angle + self.angle, radius * self.scale
        return self.x + reach * float(np.cos(turned)), self.y + reach * float(np.sin(turned))


@dataclass(frozen=True)
class _Scene:
    """What is being drawn: colours `(H, W, 3)` of scene and belt, covers `(H, W)` of metal and defect."""

    rng: np.random.Generator
    pose: _Pose
    canvas: Float32Array
    belt: Float32Array
    metal: Float32Array
    mask: Float32Array

    def near(self, x: float, y: float, reach: float) -> _Window:
        return _Window(self.mask.shape, x, y, reach)

    def mark(self, cover: Float32Array, window: _Window | None = None) -> None:
        """Add `cover` to the defect's mask."""
        mask = window.of(self.mask) if window else self.mask
        np.maximum(mask, cover, out=mask)


class _Window:
    """The square of the image around a point, so that small features cost little."""

    def __init__(self, shape: tuple[int, ...], x: float, y: float, reach: float) -> None:
        top, left = max(0, int(y - reach)), max(0, int(x - reach))
        bottom = max(top, min(shape[0], int(y + reach) + 2))
        right = max(left, min(shape[1], int(x + reach) + 2))
        self.rows, self.columns = slice(top, bottom), slice(left, right)
        self.shape = (bottom - top, right - left)
        self.dx = np.arange(left, right, dtype=np.float32)[None, :] - np.float32(x)
        self.dy = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(y)
        self.distance: Float32Array = np.sqrt(self.dx * self.dx + self.dy * self.dy)

    def of(self, canvas: Float32Array) -> Float32Array:
        return canvas[self.rows, self.columns]

    def towards(self) -> Float32Array:
        """Return the cosine between each pixel's direction from the centre and that of the lamp."""
        along = self.dx * np.float32(np.cos(LIGHT)) + self.dy * np.float32(np.sin(LIGHT))
        towards = along / np.maximum(self.distance, np.float32(0.5))
        return towards.astype(np.float32, copy=False)


def draw(rng: np.random.Generator, defect: str | None, size: tuple[int, int] = (480, 640)) -> Drawn:
    """Draw one part, `size` being (height, width) in pixels; the same generator state draws the same image.

    Raises ValueError for a `defect` that is not one of DEFECTS.
    """
    if defect is not None and defect not in DEFECTS:
        raise ValueError(f"defect: expected one of {', '.join(DEFECTS)}, or None; found {defect!r}")
    height, width = size
    scale = min(size) / DRAWN_FOR
    pose = _Pose(
        x=width / 2 + float(rng.normal(0, 2.5)) * scale,
        y=height / 2 + float(rng.normal(0, 2.5)) * scale,
        angle=float(np.deg2rad(rng.normal(0, 1.2))),
        scale=scale * float(rng.normal(1, 0.002)),
    )
    belt = _belt(rng, size, scale)
    blank = np.zeros(size, dtype=np.float32)
    scene = _Scene(rng=rng, pose=pose, canvas=belt.copy(), belt=belt, metal=blank, mask=blank.copy())
    _flange(scene)
    odd = int(rng.integers(BOLTS)) if defect in ("missing_hole", "wrong_hole") else None
    for number in range(BOLTS):
        _bolt_hole(scene, number, defect if number == odd else None)
    _stamp(scene)
    if defect in _ON_TOP:
        _ON_TOP[defect](scene)
    return Drawn(image=_photograph(scene.canvas, rng), mask=scene.mask > 0.25)


def _belt(rng: np.random.Generator, size: tuple[int, int], scale: float) -> Float32Array:
    """Return a stretch of dark woven belt: always the same belt, moved on by a random length."""
    on = int(rng.integers(size[1]))
    return _weave(size, round(scale * 1000))[:, on : on + size[1]]


@lru_cache(maxsize=4)
def _weave(size: tuple[int, int], thousandths: int) -> Float32Array:
    """Return two image widths of belt, float32 `(H, 2W, 3)`."""
    rng, scale, wide = np.random.default_rng(7), thousandths / 1000, (size[0], 2 * size[1])
    y, x = (axis.astype(np.float32) / scale for axis in np.mgrid[0 : wide[0], 0 : wide[1]])
    ribs = np.sin(2 * np.pi * (x + y) / 6.5) * np.sin(2 * np.pi * (x - y) / 6.5)
    threads = rng.normal(0, 1.6, wide[0])[:, None] + rng.normal(0, 1.2, wide[1])[None, :]
    grey = (50 + 9 * ribs + threads + _clouds(rng, wide, 14, 1.5)).astype(np.float32)
    return _coloured(grey, (0.92, 1.0, 0.97))


def _flange(scene: _Scene) -> None:
    """Lay the turned flange and its shadow on the belt; bolt holes and stamp are not there yet."""
    pose, scale = scene.pose, np.float32(scene.pose.scale)
    window = scene.near(pose.x, pose.y, (OUTER + 24) * pose.scale)
    radius = window.distance / scale
    towards = window.towards()
    part = window.of(scene.canvas)

    shadow = scene.near(pose.x + 9 * pose.scale, pose.y + 10 * pose.scale, (OUTER + 16) * pose.scale)
    dark = np.clip((OUTER + 14 - shadow.distance / scale) / 30, 0, 1) * np.float32(0.62)
    shadow.of(scene.canvas)[...] *= (1 - dark)[:, :, None]

    flat, sloped, brushed = _profiles(scene.rng)
    index = np.minimum(radius * 4, len(flat) - 1).astype(np.intp)
    hourglass = 2 * towards * towards - 1  # a turned face reflects the lamp as two fans
    grey = flat[index] + sloped[index] * towards + brushed[index] * hourglass
    grey += _clouds(scene.rng, window.shape, 26, 2.2)

    colour = _coloured(grey, (0.985, 1.0, 1.02))

    bore = scene.near(pose.x, pose.y, (BORE + 2) * pose.scale)
    inner = _within(window, bore)
    deep = np.hypot(bore.dx - 5 * scale, bore.dy - 6 * scale) / scale
    floor = _cover(deep - (BORE - 1), 3.0)[:, :, None]
    wall = (70 - 42 * towards[inner])[:, :, None]  # the far side of the bore's wall catches the lamp
    through = wall * (1 - floor) + bore.of(scene.belt) * np.float32(0.42) * floor
    hole = _cover((radius[inner] - BORE) * scale, 1.0)
    colour[inner] += (through - colour[inner]) * hole[:, :, None]

    outside = (radius - OUTER) * scale
    notch = scene.near(*pose.at(OUTER, -np.pi / 2), 10 * pose.scale)
    local = outside[_within(window, notch)]
    np.maximum(local, 10 * scale - notch.distance, out=local)
    body = _cover(outside, 1.0)
    part += (colour - part) * body[:, :, None]
    window.of(scene.metal)[...] = body
    bore.of(scene.metal)[...] *= 1 - hole


def _profiles(rng: np.random.Generator) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Return grey levels by radius, a part length being 4: plain, per cosine to the lamp, per hourglass."""
    radius: Float32Array = np.arange(0, 4 * (OUTER + 30), dtype=np.float32) / np.float32(4)
    rings = np.convolve(rng.normal(0, 1, radius.size), [0.25, 0.5, 0.25], mode="same") * 4.5
    flat = 152 + 0.8 * rings + 16.0 * _cover((radius - HUB).astype(np.float32), 1.2)
    sloped = np.full_like(radius, 8.0)
    for at, wide, plain, slope in (
        (HUB, 3.5, -12.0, 34.0),  # the step down from the hub
        (OUTER - 4, 4.5, 4.0, 46.0),  # the outer chamfer
        (BORE + 4, 4.0, 2.0, -44.0),  # the bore's chamfer slopes the other way
    ):
        ridge = np.clip(1.5 - np.abs(radius - at) * 1.5 / wide, 0, 1)
        flat, sloped = flat + plain * ridge, sloped + slope * ridge
    return flat.astype(np.float32), sloped.astype(np.float32), (30 + 0.5 * rings).astype(np.float32)


def _bolt_hole(scene: _Scene, number: int, defect: str | None) -> None:
    rng, scale = scene.rng, np.float32(scene.pose.scale)
    x, y = scene.pose.at(BOLT_CIRCLE, number * 2 * np.pi / BOLTS)
    radius, rim = BOLT, COUNTERSINK
    if defect is not None:
        window = scene.near(x, y, (COUNTERSINK + 1) * scene.pose.scale)
        scene.mark(_cover(window.distance - COUNTERSINK * scale, 1.0), window)
    if defect == "missing_hole":
        return
    if defect == "wrong_hole" and rng.random() < 0.5:  # the wrong drill
        radius = BOLT * float(rng.choice([0.5, 0.6, 1.4, 1.55]))
        rim = radius + COUNTERSINK - BOLT
    elif defect == "wrong_hole":  # the right drill, in the wrong place
        off, way = float(rng.uniform(9, 17)) * scene.pose.scale, float(rng.uniform(0, 2 * np.pi))
        x, y = x + off * float(np.cos(way)), y + off * float(np.sin(way))
    window = scene.near(x, y, (rim + 2) * scene.pose.scale)
    if defect is not None:
        scene.mark(_cover(window.distance - rim * scale, 1.0), window)
    part, towards = window.of(scene.canvas), window.towards()
    sink = _cover(window.distance - rim * scale, 1.0)
    part += ((148 - 62 * towards)[:, :, None] - part) * sink[:, :, None]
    deep = np.hypot(window.dx - 2.5 * scale, window.dy - 3 * scale)
    floor = _cover(deep - radius * np.float32(0.94) * scale, 2.0)[:, :, None]
    inside = (66 - 36 * towards)[:, :, None] * (1 - floor) + window.of(scene.belt) * np.float32(0.36) * floor
    hole = _cover(window.distance - radius * scale, 1.0)
    part += (inside - part) * hole[:, :, None]
    window.of(scene.metal)[...] *= 1 - hole


def _stamp(scene: _Scene) -> None:
    """Press the part's number into the face: a stroke is dark on the lamp's side and lit on the other."""
    x, y = scene.pose.at(BOLT_CIRCLE, np.pi / 2)
    scale = scene.pose.scale
    window = scene.near(x, y, 44 * scale)
    plate = Image.new("L", (window.shape[1], window.shape[0]))
    centre = (x - window.columns.start, y - window.rows.start)
    font = ImageFont.load_default(size=max(6.0, 18 * scale))
    ImageDraw.Draw(plate).text(centre, STAMP, fill=255, font=font, anchor="mm")
    turned = plate.rotate(-float(np.rad2deg(scene.pose.angle)), Image.Resampling.BILINEAR, center=centre)
    depth = np.asarray(turned.filter(ImageFilter.GaussianBlur(0.7 * scale)), dtype=np.float32) / 255
    relief = 64 * (np.roll(depth, (-1, -1), (0, 1)) - np.roll(depth, (1, 1), (0, 1))) - 46 * depth
    window.of(scene.canvas)[...] += relief[:, :, None]


def _scratch(scene: _Scene) -> None:
    rng = scene.rng
    points = _curve(scene, length=float(rng.uniform(35, 150)), bend=0.10)
    wide = float(rng.uniform(1.2, 2.8)) * scene.pose.scale
    line = _line(scene.mask.shape, points, wide) * scene.metal
    lip = np.roll(line, (1, 1), (0, 1)) * scene.metal
    scene.canvas[...] += (line * np.float32(rng.uniform(45, 85)) - lip * 42)[:, :, None]
    scene.mark(_line(scene.mask.shape, points, wide + 2) * scene.metal)


def _fibre(scene: _Scene) -> None:
    rng = scene.rng
    points = _curve(scene, length=float(rng.uniform(50, 130)), bend=0.9)
    line = _line(scene.mask.shape, points, float(rng.uniform(1.6, 3.0)) * scene.pose.scale)
    colours = ((38, 52, 98), (120, 34, 38), (30, 30, 30), (226, 220, 206))
    colour = np.array(colours[int(rng.integers(len(colours)))], dtype=np.float32)
    shadow = np.roll(line, (3, 2), (0, 1))[:, :, None]  # it lies loose, so it throws a shadow
    scene.canvas[...] *= 1 - np.float32(0.35) * shadow
    scene.canvas[...] += (colour - scene.canvas) * (line * np.float32(0.9))[:, :, None]
    scene.mark(line)


def _stain(scene: _Scene) -> None:
    rng = scene.rng
    reach = np.float32(rng.uniform(14, 40) * scene.pose.scale)
    window = scene.near(*_on_face(scene), 1.8 * float(reach))
    depth = 1 + _clouds(rng, window.shape, 6, 0.16) - window.distance / reach
    inside = np.clip(depth * 5, 0, 1) * window.of(scene.metal)
    rim = np.clip(1 - np.abs(depth - 0.1) * 9, 0, 1) * window.of(scene.metal)  # dried oil is darkest at its rim
    alpha = inside * np.float32(rng.uniform(0.3, 0.55)) + rim * np.float32(0.18)
    part = window.of(scene.canvas)
    part *= 1 - alpha[:, :, None] * np.array([0.48, 0.58, 0.73], dtype=np.float32)
    scene.mark(inside, window)


def _dent(scene: _Scene) -> None:
    rng = scene.rng
    reach = np.float32(rng.uniform(9, 20) * scene.pose.scale)
    window = scene.near(*_on_face(scene), 3 * float(reach))
    squeeze, way = float(rng.uniform(0.7, 1.0)), float(rng.uniform(0, np.pi))
    along = window.dx * np.cos(way) + window.dy * np.sin(way)
    across = (window.dy * np.cos(way) - window.dx * np.sin(way)) / squeeze
    bowl = np.exp(-(((along**2 + across**2) / reach**2) ** 1.5)) * window.of(scene.metal)
    slope = (window.dx * np.cos(LIGHT) + window.dy * np.sin(LIGHT)) / reach
    shade = bowl * (-slope * np.float32(rng.uniform(100, 150)) - 26)
    window.of(scene.canvas)[...] += shade[:, :, None]
    scene.mark(bowl, window)


def _chip(scene: _Scene) -> None:
    rng, scale = scene.rng, np.float32(scene.pose.scale)
    reach = np.float32(rng.uniform(13, 30) * scene.pose.scale)
    where = scene.pose.at(OUTER + 2, float(rng.uniform(-0.35, np.pi + 0.35)))  # anywhere but at the notch
    window = scene.near(*where, 1.7 * float(reach))
    bite = window.distance - reach * (1 + _clouds(rng, window.shape, 6, 0.10))
    on_part = window.of(scene.metal)
    fracture, gone = _cover(bite, 1.2) * on_part, _cover(bite + 4.5 * scale, 1.5) * on_part
    part = window.of(scene.canvas)
    grain = 118 + 26 * rng.standard_normal(window.shape, dtype=np.float32)
    part += (grain[:, :, None] - part) * fracture[:, :, None]
    part += (window.of(scene.belt) * np.float32(0.5) - part) * gone[:, :, None]
    scene.mark(fracture, window)


_ON_TOP = {"scratch": _scratch, "stain": _stain, "chip": _chip, "dent": _dent, "fibre": _fibre}


def _photograph(canvas: Float32Array, rng: np.random.Generator) -> UInt8Array:
    """Return what the camera makes of the scene: uneven light, gain, slight defocus, noise, clipping."""
    height, width = canvas.shape[:2]
    slope_y, slope_x = rng.normal(0, 0.035, 2).astype(np.float32)
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    light = 1.03 + slope_y * rows + slope_x * columns - np.float32(0.07) * (rows * rows + columns * columns)
    canvas *= (light * np.float32(rng.normal(1.0, 0.03)))[:, :, None]
    np.clip(canvas, 0, 255, out=canvas)
    # Noise arises in the sensor, so the lens blurs the scene first.
    lens = ImageFilter.BoxBlur(float(rng.uniform(0.25, 0.5)))
    seen = np.asarray(Image.fromarray(canvas.astype(np.uint8)).filter(lens), dtype=np.int16)
    noise = (rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(2.6)).astype(np.int16)
    noisy: UInt8Array = np.clip(seen + noise, 0, 255).astype(np.uint8)
    return noisy


def _coloured(grey: Float32Array, tint: tuple[float, float, float]) -> Float32Array:
    """Return `grey`, `(H, W)`, as `(H, W, 3)` with the tint's share in each channel."""
    colour = np.empty((*grey.shape, 3), dtype=np.float32)
    for channel, share in enumerate(tint):
        np.multiply(grey, np.float32(share), out=colour[:, :, channel])
    return colour


def _within(outer: _Window, inner: _Window) -> tuple[slice, slice]:
    """Return where `inner`, which lies wholly in `outer`, is within it."""
    top, left = inner.rows.start - outer.rows.start, inner.columns.start - outer.columns.start
    return slice(top, top + inner.shape[0]), slice(left, left + inner.shape[1])


def _cover(distance: Float32Array, soft: float) -> Float32Array:
    """Return how much of each pixel lies inside, 1 to 0, for a signed distance that grows outwards."""
    cover: Float32Array = np.clip(np.float32(0.5) - distance / np.float32(soft), 0, 1)
    return cover


def _clouds(rng: np.random.Generator, size: tuple[int, int], cells: int, strength: float) -> Float32Array:
    """Return smooth noise of about `cells` across, of mean 0 and standard deviation about `strength`."""
    coarse = (max(3, cells * size[0] // max(size)), max(3, cells * size[1] // max(size)))
    rough = (1.6 * strength * rng.standard_normal(coarse)).astype(np.float32)
    smooth = Image.fromarray(rough).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float32)


def _on_face(scene: _Scene) -> tuple[float, float]:
    """Return x, y of a random point of the face, between hub and rim."""
    return scene.pose.at(float(scene.rng.uniform(HUB + 10, OUTER - 22)), float(scene.rng.uniform(0, 2 * np.pi)))


def _curve(scene: _Scene, length: float, bend: float) -> list[tuple[float, float]]:
    """Return points of a line over the part that wanders by about `bend` radians over its `length`."""
    rng, pose, steps = scene.rng, scene.pose, 24
    # It begins between two bolts: one that begins at a hole could lie in it altogether.
    between = (int(rng.integers(BOLTS)) + 0.5) * 2 * np.pi / BOLTS + float(rng.normal(0, 0.12))
    x, y = pose.at(float(rng.uniform(HUB + 10, OUTER - 22)), between)
    way, turn = float(rng.uniform(0, 2 * np.pi)), float(rng.normal(0, bend))
    points = [(x, y)]
    for _ in range(steps):
        turn += float(rng.normal(0, bend / 3))
        way += turn / 6
        if np.hypot(x - pose.x, y - pose.y) > (OUTER - 12) * pose.scale:  # it stays on the part
            way = float(np.arctan2(pose.y - y, pose.x - x))
        x += length * pose.scale / steps * float(np.cos(way))
        y += length * pose.scale / steps * float(np.sin(way))
        points.append((x, y))
    return points


def _line(shape: tuple[int, ...], points: list[tuple[float, float]], wide: float) -> Float32Array:
    """Return the line's cover of each pixel, float32 `(H, W)`, drawn at three times the size and shrunk."""
    xs, ys = zip(*points, strict=True)
    left, top = (max(0, int(min(along) - wide) - 4) for along in (xs, ys))
    right, bottom = min(shape[1], int(max(xs) + wide) + 5), min(shape[0], int(max(ys) + wide) + 5)
    sheet = Image.new("L", (3 * (right - left), 3 * (bottom - top)))
    enlarged = [(3 * (x - left + 0.5), 3 * (y - top + 0.5)) for x, y in points]
    ImageDraw.Draw(sheet).line(enlarged, fill=255, width=max(1, round(3 * wide)), joint="curve")
    cover = np.zeros(shape[:2], dtype=np.float32)
    shrunk = sheet.resize((right - left, bottom - top), Image.Resampling.BOX)
    cover[top:bottom, left:right] = np.asarray(shrunk, dtype=np.float32) / 255
    return cover
