"""Whether the nodes of a cluster share the disk that a workspace lies on."""

import uuid
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from operators.errors import WorkspaceError
from pipeline.storage import Store


def check_shared(store: Store) -> None:
    """Has every node look for a file that this process puts into a local workspace.

    Nodes that join later are not asked. On one node, or for a workspace in an object store, nothing is done.

    Raises:
        WorkspaceError: a node does not see the file.
    """
    if not store.is_local:
        return
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    others = [node for node in nodes if node["NodeID"] != here]
    if not others:
        return
    probe = f".probe-{uuid.uuid4().hex}"
    store.replace(probe, b"winnow")
    try:
        answers = [(node["NodeManagerHostname"], _ask(node["NodeID"], store.path(probe))) for node in others]
        blind = sorted({name for name, answer in answers if not _seen(answer)})
    finally:
        store.remove(probe)
    if blind:
        raise WorkspaceError(
            f"{store.url} must be a folder that all nodes of the cluster share, or a URL, got one that "
            f"{', '.join(blind)} cannot see"
        )


def _sees(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # closed to who runs the workers there
        return False


def _ask(node_id: str, path: str) -> Any:
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(_sees).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(path)


def _seen(answer: Any) -> bool:
    """A node that is lost before it answers is no reason to stop."""
    try:
        return bool(ray.get(answer))
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError:
        return True
