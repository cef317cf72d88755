"""What models with weights share: names that may be misspelt, weights in a file, downloads that may fail."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor

from operators.encoders.settings import OpenClipSettings, TimmSettings
from operators.errors import ModelError
from pipeline import weights as weight_files

Origin = Literal["random", "hub", "tag", "file"]
"""Where weights come from. Only open_clip's models have tags."""


def origin_of(weights: str, *, is_tag: bool = False) -> Origin:
    """Reads the `weights` of a config, of which the library knows whether it is one of its tags."""
    if weights == "random":
        return "random"
    if weights == "hub":
        return "hub"
    return "tag" if is_tag else "file"


def check_name(name: str, known: Iterable[str]) -> None:
    """Raises ModelError, with the closest names, where a library does not know a model."""
    known = set(known)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise ModelError(f"name must be a model that the library knows, got {name!r}{hint}")


def check_file(settings: OpenClipSettings | TimmSettings) -> None:
    """Raises ModelError where weights are missing, or their header shows that they are damaged."""
    weight_files.check_header(weight_files.find_weights(settings.weights, settings.storage))


def read_file(settings: OpenClipSettings | TimmSettings) -> dict[str, Tensor]:
    """The tensors of a weight file or an export folder, by name. Remote ones are downloaded once, then cached.

    Raises:
        ModelError: there is none, it cannot be reached, or it is not plain tensors.
    """
    file = weight_files.find_weights(settings.weights, settings.storage)
    weight_files.check_header(file)
    return weight_files.read_state_dict(weight_files.local_copy(file))


def identity_of(settings: OpenClipSettings | TimmSettings, origin: Origin) -> dict[str, Any]:
    """The settings, with a weight file named by its content, and the seed only where it draws the weights."""
    found = settings.model_dump(mode="json")
    if origin == "file":
        found["weights"] = weight_files.fingerprint(weight_files.find_weights(settings.weights, settings.storage))
    if origin != "random":
        del found["seed"]
    return found


@contextmanager
def downloading(settings: OpenClipSettings | TimmSettings) -> Iterator[None]:
    """Each library and each hub has its own family of errors; all of them mean that the weights cannot be had."""
    try:
        yield
    except Exception as error:
        got = str(error).splitlines()[0] if str(error) else type(error).__name__
        rule = f"weights {settings.weights!r} of {settings.name} must be downloadable, or be a local path"
        raise ModelError(f"{rule}; got {got}") from error
