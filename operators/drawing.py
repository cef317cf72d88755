"""Paints a scene: a textured background, antialiased shapes in one colour, a soft shadow under them.

Legend: H height, W width, C = 3 channels (RGB, float32, 0..255), P points of an outline, 2 = (x, y), y downwards.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from operators.scenes import BACKGROUNDS, COLOURS, PLACEMENTS, SIZES, Colour, Scene

Points = NDArray[np.float64]
Pixels = NDArray[np.float32]

_MAX_TILT = np.deg2rad(12)
"""Below 45 degrees by far, so that a square never becomes a diamond."""


def render(scene: Scene, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Paints the scene as an RGB image; what the scene leaves open (shades, tilts, jitter) comes from `rng`.

    Args:
        scene: what to show.
        width: pixels, 16 or more.
        height: pixels, 16 or more.
        rng: the only source of chance: the same state gives the same pixels.
    """
    picture = _paint_background(scene, width, height, rng)
    ink = _draw_mask(scene, width, height, rng)
    picture.paste((0, 0, 0), mask=_cast_shadow(ink))
    picture.paste(_mix_paint(COLOURS[scene.concept.colour], width, height, rng), mask=ink)
    return picture


def _draw_mask(scene: Scene, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Where there is ink, as an 8-bit image, drawn larger and reduced for smooth edges."""
    scale = 4 if max(width, height) <= 160 else 2
    mask = Image.new("L", (width * scale, height * scale))
    canvas = ImageDraw.Draw(mask)
    for centre_2, radius in _lay_out(scene, width * scale, height * scale, rng):
        tilt = rng.uniform(-_MAX_TILT, _MAX_TILT)
        turn_22 = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
        outline_P2 = centre_2 + radius * (_OUTLINES[scene.concept.shape]() @ turn_22)
        canvas.polygon([(x, y) for x, y in outline_P2.tolist()], fill=255)
    return mask.reduce(scale)


def _lay_out(scene: Scene, width: int, height: int, rng: np.random.Generator) -> list[tuple[Points, float]]:
    """Centre and radius of each object in pixels: one to a cell of a grid over the placement's box, apart."""
    left, top, right, bottom = np.multiply(PLACEMENTS[scene.placement], (width, height, width, height))
    box_2 = np.array([right - left, bottom - top])
    columns = scene.count if scene.placement == "in a row" else round(np.sqrt(scene.count * box_2[0] / box_2[1]))
    columns = min(max(columns, 1), scene.count)
    rows = -(-scene.count // columns)
    cell_2 = box_2 / (columns, rows)
    radius = float(cell_2.min()) / 2 * SIZES[scene.size]
    slack_2 = cell_2 / 2 - radius
    objects = []
    for cell in rng.permutation(columns * rows)[: scene.count]:
        middle_2 = (np.array(divmod(int(cell), columns))[::-1] + 0.5) * cell_2
        objects.append((np.array([left, top]) + middle_2 + slack_2 * rng.uniform(-0.8, 0.8, size=2), radius))
    return objects


def _paint_background(scene: Scene, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """The background in its colour, lighter and darker by a pattern of about -1..1 that makes the texture."""
    side = min(width, height)
    x_W, y_H = np.arange(width, dtype=np.float32) / side, np.arange(height, dtype=np.float32)[:, None] / side
    angle, tiles = rng.uniform(0, np.pi), rng.uniform(5, 8)
    along_HW = np.float32(np.cos(angle)) * x_W + np.float32(np.sin(angle)) * y_H
    match scene.texture:
        case "grainy":
            pattern_HW = rng.standard_normal((height, width), dtype=np.float32)
        case "striped":
            pattern_HW = (3 * np.sin(np.float32(2 * np.pi * tiles) * along_HW)).clip(-1, 1)
        case "checkered":
            pattern_HW = 1 - 2 * ((np.floor(x_W * tiles) + np.floor(y_H * tiles)) % 2)
        case "dotted":
            off_x_W, off_y_H = (x_W * tiles) % 1 - 0.5, (y_H * tiles) % 1 - 0.5
            pattern_HW = 1 - 2 * ((0.3 - np.hypot(off_x_W, off_y_H)) * 8 + 0.5).clip(0, 1)
        case "shaded":
            pattern_HW = 2.4 * (along_HW - along_HW.min()) / np.ptp(along_HW) - 1.2
        case _:
            pattern_HW = np.zeros((height, width), dtype=np.float32)
    return _to_image(_shade(BACKGROUNDS[scene.background], rng) + np.float32(15) * pattern_HW[:, :, None])


def _mix_paint(colour: Colour, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A shade of the colour over the whole picture, as if lit from above."""
    light_H = np.linspace(1.08, 0.9, height, dtype=np.float32)
    paint_HC = light_H[:, None] * _shade(colour, rng)
    return _to_image(np.broadcast_to(paint_HC[:, None, :], (height, width, 3)))


def _cast_shadow(ink: Image.Image) -> Image.Image:
    """The ink, moved down to the right, blurred and thinned."""
    side = min(ink.size)
    shadow = Image.new("L", ink.size)
    shadow.paste(ink, (max(side // 50, 1), max(side // 40, 1)))
    return shadow.filter(ImageFilter.BoxBlur(side / 60)).point(lambda value: value * 0.35)


def _shade(colour: Colour, rng: np.random.Generator) -> Pixels:
    """A nearby shade of a colour, shape (3,)."""
    return (np.array(colour) + rng.uniform(-9, 9, size=3)).astype(np.float32)


def _to_image(pixels_HWC: Pixels) -> Image.Image:
    return Image.fromarray((pixels_HWC + np.float32(0.5)).clip(0, 255).astype(np.uint8))


def _arc(start: float, stop: float, radius: float = 1.0, num_points: int = 48) -> Points:
    """Points on a circle about the origin, angles in turns."""
    angle_P = 2 * np.pi * np.linspace(start, stop, num_points)
    points_P2: Points = radius * np.stack([np.cos(angle_P), np.sin(angle_P)], axis=1)
    return points_P2


def _corners(num_corners: int, radii: tuple[float, ...] = (1.0,)) -> Points:
    """Corners at even angles, the first on top, their radii taken in turn."""
    points_P2 = _arc(-0.25, 0.75, num_points=num_corners + 1)[:-1]
    points_P2 *= np.resize(radii, num_corners)[:, None]
    return points_P2


def _ring() -> Points:
    """Both circles as one outline: the seam between them has no area."""
    return np.concatenate([_arc(0, 1), _arc(1, 0, radius=0.55)])


def _moon() -> Points:
    """The unit circle without the circle of radius 0.8 about (0.5, 0); they meet at x = 0.61."""
    outer, inner = np.arccos(0.61) / (2 * np.pi), np.arccos((0.61 - 0.5) / 0.8) / (2 * np.pi)
    bite_P2 = _arc(1 - inner, inner, radius=0.8) + np.array([0.5, 0])
    crescent_P2: Points = np.concatenate([_arc(outer, 1 - outer), bite_P2]) + np.array([0.2, 0])
    return crescent_P2


def _heart() -> Points:
    t_P = np.linspace(0, 2 * np.pi, 64)
    x_P = 16 * np.sin(t_P) ** 3
    y_P = -13 * np.cos(t_P) + 5 * np.cos(2 * t_P) + 2 * np.cos(3 * t_P) + np.cos(4 * t_P)
    return np.stack([x_P, y_P], axis=1) / 17


def _flower() -> Points:
    petals_P = 0.7 + 0.3 * np.cos(5 * 2 * np.pi * np.linspace(0, 1, 96))
    return _arc(-0.25, 0.75, num_points=96) * petals_P[:, None]


def _cross() -> Points:
    arm, reach = 0.32, 0.95
    quarter_P2 = np.array([(arm, -reach), (arm, -arm), (reach, -arm)])
    quarter_turn_22 = np.array([[0, 1], [-1, 0]])
    return np.concatenate([quarter_P2 @ np.linalg.matrix_power(quarter_turn_22, turns) for turns in range(4)])


_OUTLINES: dict[str, Callable[[], Points]] = {
    "circle": lambda: 0.96 * _arc(0, 1),
    "ring": _ring,
    "square": lambda: 0.84 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]),
    "triangle": lambda: _corners(3) + np.array([0, 0.18]),
    "diamond": lambda: _corners(4, (1.0, 0.66)),
    "hexagon": lambda: _corners(6),
    "star": lambda: _corners(10, (1.0, 0.42)),
    "cross": _cross,
    "heart": _heart,
    "moon": _moon,
    "arrow": lambda: np.array([(-1, -0.26), (0.1, -0.26), (0.1, -0.74), (1, 0), (0.1, 0.74), (0.1, 0.26), (-1, 0.26)]),
    "flower": _flower,
}
"""Shape -> its outline about the origin, within the unit circle or close to it."""
