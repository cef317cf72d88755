"""YAML as plain values, with the place of every key and item.

Scalars follow YAML 1.2: only `true` and `false` are booleans, `1e-3` is a number, `no` and `2024-01-01` are text.
Anchors and aliases work. Tags of other languages, duplicate keys and merge keys are refused. Nothing is expanded.
"""

import re
from collections.abc import Callable
from typing import Any

import yaml

from operators.errors import ConfigError

Key = str | int
KeyPath = tuple[Key, ...]
"""Where a value lies: keys of mappings and indices of lists, from the root."""


class _Loader(yaml.SafeLoader):
    """PyYAML's composer with the scalars of YAML 1.2; used for nodes only, never to construct objects."""


_CORE = "tag:yaml.org,2002:"
_SCALARS: dict[str, tuple[str, list[str], Callable[[str], Any]]] = {
    # tag: what plain text must look like, its possible first characters ("" when it may be empty), how it is read
    "null": (r"(~|null|Null|NULL)?\Z", ["~", "n", "N", ""], lambda _: None),
    "bool": (r"(true|True|TRUE|false|False|FALSE)\Z", [*"tTfF"], lambda text: text.lower() == "true"),
    "int": (
        r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+)\Z",
        [*"-+0123456789"],
        lambda text: int(text, 0),
    ),
    "float": (
        r"([-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z",
        [*"-+.0123456789"],
        lambda text: float(re.sub(r"\.(?=[iInN])", "", text)),
    ),
}
_Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first, _) in _SCALARS.items():
    _Loader.add_implicit_resolver(_CORE + _tag, re.compile(_pattern), _first)


def parse_yaml(text: str, name: str, place: Callable[[yaml.Mark], str]) -> tuple[Any, dict[KeyPath, str]]:
    """The value of a YAML text, and where each of its keys and items stands.

    Args:
        text: one YAML document.
        name: what the text is called; the origin of the root.
        place: turns the mark of a key or an item into its origin.

    Raises:
        ConfigError: not YAML, or what is refused here; names line and column.
    """
    origins: dict[KeyPath, str] = {(): name}
    try:
        node = _Loader(text).get_single_node()
        return None if node is None else _build(node, (), origins, place), origins
    except RecursionError:
        raise ConfigError(f"{name} must not contain itself (a YAML alias inside its own anchor)") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{place(mark)}:{mark.column + 1}" if mark and place(mark) != name else name
        raise ConfigError(f"{at} must be valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} must be valid YAML: {error}") from error


def _build(node: yaml.Node, path: KeyPath, origins: dict[KeyPath, str], place: Callable[[yaml.Mark], str]) -> Any:
    """The plain value of a node; notes the origin of every key and item below it."""
    if isinstance(node, yaml.MappingNode) and node.tag == _CORE + "map":
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _node_error("a key must be a plain word", key_node)
            key = key_node.value
            if key in mapping:
                first = origins[(*path, key)]
                raise _node_error(f"the key {key!r} must be given once, the first is at {first}", key_node)
            origins[(*path, key)] = place(key_node.start_mark)
            mapping[key] = _build(value_node, (*path, key), origins, place)
        return mapping
    if isinstance(node, yaml.SequenceNode) and node.tag == _CORE + "seq":
        items = []
        for index, item in enumerate(node.value):
            origins[(*path, index)] = place(item.start_mark)
            items.append(_build(item, (*path, index), origins, place))
        return items
    kind = node.tag.removeprefix(_CORE)
    if isinstance(node, yaml.ScalarNode) and kind == "str":
        return node.value
    if not isinstance(node, yaml.ScalarNode) or kind not in _SCALARS:
        raise _node_error(f"the tag {node.tag!r} is not supported", node)
    try:
        return _SCALARS[kind][2](node.value)
    except ValueError as error:
        raise _node_error(str(error), node) from error


def _node_error(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
