"""The files that deploy Winnow, and the versions they must name."""

import re
import tomllib
from pathlib import Path

TOP = Path(__file__).parents[2]
DOCKER = TOP / "docker"
MANIFESTS = sorted((DOCKER / "kubernetes").glob("*.yaml"))
FILES = [TOP / "cluster.yaml", *(path for path in sorted(DOCKER.rglob("*")) if path.is_file())]

WINNOW = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["version"]
PINNED = dict(re.findall(r"^([\w.-]+)==(\S+)$", (TOP / "constraints.txt").read_text(), re.MULTILINE))
RAY = PINNED["ray"]
IMAGES = {f"registry.example.com/winnow:{WINNOW}-{platform}" for platform in ("cpu", "cu130")}
