"""What a synthetic image shows and how people would describe it: the vocabulary, scenes, captions.

A scene has one concept, a colour and a shape ("red circle"), and attributes: how many, how large, where, on what
background. Captions name the concept always and the attributes sometimes, as alt texts do. How a scene looks is in
`operators.drawing`.

Legend: K concepts.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

COLOURS: dict[str, Colour] = {
    "red": (212, 46, 48),
    "orange": (241, 137, 32),
    "yellow": (248, 212, 52),
    "green": (52, 150, 76),
    "blue": (46, 92, 205),
    "purple": (128, 66, 172),
    "pink": (246, 138, 182),
    "brown": (124, 78, 44),
    "black": (32, 32, 38),
    "white": (249, 249, 246),
}
SHAPES = {
    "circle": "circles",
    "ring": "rings",
    "square": "squares",
    "triangle": "triangles",
    "diamond": "diamonds",
    "hexagon": "hexagons",
    "star": "stars",
    "cross": "crosses",
    "heart": "hearts",
    "moon": "moons",
    "arrow": "arrows",
    "flower": "flowers",
}
"""Singular -> plural."""

BACKGROUNDS: dict[str, Colour] = {
    "grey": (146, 148, 152),
    "light grey": (208, 210, 212),
    "dark grey": (74, 77, 84),
    "beige": (229, 213, 184),
    "navy": (30, 42, 84),
    "sky blue": (163, 208, 240),
    "mint": (184, 228, 204),
    "lavender": (208, 200, 236),
}
TEXTURES = ("plain", "grainy", "striped", "checkered", "dotted", "shaded")
SIZES = {"small": 0.66, "": 0.82, "large": 0.98}
"""Word -> share of its cell that an object fills."""

PLACEMENTS: dict[str, Box] = {
    "in the middle": (0.2, 0.2, 0.8, 0.8),
    "on the left": (0.06, 0.15, 0.5, 0.85),
    "on the right": (0.5, 0.15, 0.94, 0.85),
    "at the top": (0.15, 0.06, 0.85, 0.5),
    "at the bottom": (0.15, 0.5, 0.85, 0.94),
    "in the top left corner": (0.06, 0.06, 0.48, 0.48),
    "in the top right corner": (0.52, 0.06, 0.94, 0.48),
    "in the bottom left corner": (0.06, 0.52, 0.48, 0.94),
    "in the bottom right corner": (0.52, 0.52, 0.94, 0.94),
    "in a row": (0.04, 0.3, 0.96, 0.7),
    "scattered about": (0.04, 0.04, 0.96, 0.96),
}
"""Phrase -> left, top, right, bottom as shares of the image."""

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
_COUNT_WEIGHTS = (0.42, 0.22, 0.14, 0.1, 0.07, 0.05)
_MIN_CONTRAST = 105.0
"""Euclidean RGB distance below which an object would drown in its background."""

_TEMPLATES = (
    "{things} on {ground}",
    "{things} {where}",
    "{things} {where} on {ground}",
    "{things}, {where}, against {ground}",
    "{ground} with {things} {where}",
    "{ground} with {things}",
    "a picture of {things} {where}",
    "a picture showing {things} on {ground}",
    "an illustration of {things}",
    "clip art of {things} on {ground}",
    "a simple drawing with {things} {where}",
    "there {are} {things} {where}",
    "{terse}",
)


class Concept(NamedTuple):
    """The class of a scene: what zero-shot evaluation asks for."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


CONCEPTS = tuple(Concept(colour, shape) for colour in COLOURS for shape in SHAPES)


@dataclass(frozen=True, slots=True)
class Scene:
    """One concept with its attributes; each word is a key of the tables above, `count` lies in 1..6."""

    concept: Concept
    count: int
    size: str
    placement: str
    texture: str
    background: str


def zipf_weights(num_concepts: int, exponent: float) -> NDArray[np.float64]:
    """Probabilities p_K, float64, proportional to 1 / rank^exponent; exponent 0 is uniform."""
    weights_K = np.power(np.arange(1, num_concepts + 1, dtype=np.float64), -exponent)
    probabilities_K: NDArray[np.float64] = weights_K / weights_K.sum()
    return probabilities_K


def draw_scene(concept: Concept, rng: np.random.Generator) -> Scene:
    """A random scene of one concept, on a background it stands out from, its objects large enough to read at 32 px."""
    count = 1 + int(rng.choice(len(_COUNT_WEIGHTS), p=_COUNT_WEIGHTS))
    return Scene(
        concept=concept,
        count=count,
        size=_pick(tuple(SIZES), rng),
        placement=_pick(_placements(count), rng),
        texture=_pick(TEXTURES, rng),
        background=_pick(tuple(name for name in BACKGROUNDS if _contrast(concept, name) >= _MIN_CONTRAST), rng),
    )


def mirror(scene: Scene) -> Scene:
    """The scene after a horizontal flip: left and right change places."""
    swap = {"left": "right", "right": "left"}
    return replace(scene, placement=" ".join(swap.get(word, word) for word in scene.placement.split()))


def write_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A true description of the scene in one of several wordings, some terse, some with a capital and a full stop."""
    noun = scene.concept.shape if scene.count == 1 else SHAPES[scene.concept.shape]
    terse = " ".join(word for word in (scene.size, scene.concept.colour, noun) if word)
    caption = _pick(_TEMPLATES, rng).format(
        things=_with_article(terse) if scene.count == 1 else f"{_NUMBERS[scene.count]} {terse}",
        where=scene.placement,
        ground=_with_article(f"{scene.texture} {scene.background} background"),
        are="is" if scene.count == 1 else "are",
        terse=terse,
    )
    return f"{caption[0].upper()}{caption[1:]}." if rng.random() < 0.3 else caption


def _placements(count: int) -> tuple[str, ...]:
    """Where so many objects fit: one anywhere but in a row, two not in a corner, more only over the whole width."""
    if count == 1:
        return tuple(name for name in PLACEMENTS if name not in ("in a row", "scattered about"))
    if count == 2:
        return tuple(name for name in PLACEMENTS if "corner" not in name)
    return ("in a row", "scattered about") if count == 3 else ("scattered about",)


def _contrast(concept: Concept, background: str) -> float:
    return float(np.linalg.norm(np.subtract(COLOURS[concept.colour], BACKGROUNDS[background])))


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _pick(words: tuple[str, ...], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]
