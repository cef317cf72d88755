"""Running `winnow curate` in this process."""

import pytest
import yaml

from jobs.main import main
from tests.small_pools import sound, write_tar


@pytest.fixture
def curate(tmp_path, monkeypatch, capfd):
    """Runs `winnow curate` on a sound config with changes; returns the exit code and the lines that say what is wrong.

    Afterwards nothing of an unfinished run may be in sight, and nothing of Python in what was printed.
    """
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "pool.tar", sound(8))

    def run(*argv, **changes):
        config = {"pool": {"format": "webdataset", "path": "pool.tar"}, "workspace": "w", "report": False}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(config | changes, sort_keys=False))
        code = main(["curate", "c.yaml", *argv])
        err = capfd.readouterr().err
        assert "Traceback" not in err
        if code:
            left = [str(path.relative_to(tmp_path)) for path in (tmp_path / "w").rglob("*") if path.is_file()]
            assert not [name for name in left if any(word in name for word in ("attempt", "probe", "pieces", "ledger"))]
        return code, "\n".join(line for line in err.splitlines() if line.startswith("winnow: "))

    return run
