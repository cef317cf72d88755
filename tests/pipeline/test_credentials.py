"""Credentials of a config are in nothing that it prints, says or raises."""

import traceback

import pytest
from pydantic import ValidationError

from operators.errors import ConfigError
from pipeline.arguments import read_options
from pipeline.config.loader import load_config
from pipeline.curation import Curation
from pipeline.pool import Pool, Source, names_password
from pipeline.storage import Store

SECRET = "a-secret-of-the-test"
STORAGE = {"key": SECRET, "secret": SECRET, "client_kwargs": {"aws_session_token": SECRET}}
CONFIG = """
pool: {{format: webdataset, path: "s3://b/*.tar", storage: {{secret: {secret}}}}}
workspace: s3://b/w
storage: {storage}
"""


def curation() -> Curation:
    source = {"format": "webdataset", "path": "s3://b/*.tar", "storage": STORAGE}
    export = {"format": "uids", "path": "s3://b/u.npy", "storage": STORAGE}
    return Curation.model_validate({"pool": source, "workspace": "s3://b/w", "storage": STORAGE, "export": [export]})


def test_they_are_not_shown():
    config = curation()
    shown = [repr(config), str(config), repr(config.store), repr(config.pool.sources[0]), repr(config.export)]
    assert config.store.options == STORAGE
    assert all(SECRET not in text and text for text in shown)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (Source, {"format": "webdataset", "path": "a", "storage": STORAGE, "dim": 3}),
        (Pool, {"sources": [{"format": "tape", "path": "a", "storage": STORAGE}]}),
        (Curation, {"pool": {"format": "webdataset", "path": "a", "storage": SECRET}, "workspace": ""}),
    ],
)
def test_they_are_in_no_error_of_pydantic(model, settings):
    with pytest.raises(ValidationError) as caught:
        model.model_validate(settings)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("storage", "overrides"),
    [
        (SECRET, []),
        (f"[{SECRET}]", []),
        ("{}", [f"storage={SECRET}"]),
        ("{}", [f"storage.secret={{{SECRET}"]),
        ("{}", [f"storage.secret:{SECRET}"]),
        ("{}", [f"pool.storage={SECRET}"]),
        (SECRET, ["storage.key=x"]),
        ("{}", [f"storage.secret={SECRET}", "storag.key=x"]),
    ],
)
def test_they_are_in_no_problem_of_a_config(tmp_path, storage, overrides):
    (tmp_path / "c.yaml").write_text(CONFIG.format(storage=storage, secret=SECRET))
    with pytest.raises(ConfigError) as caught:
        load_config(str(tmp_path / "c.yaml"), Curation, overrides)
    assert SECRET not in str(caught.value)
    assert "storag" in str(caught.value)


@pytest.mark.parametrize("assignment", [f"secret:{SECRET}", f"secret={{{SECRET}", f"={SECRET}"])
def test_they_are_in_no_error_about_arguments(assignment):
    with pytest.raises(ConfigError) as caught:
        read_options("--storage", [assignment])
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://me:secret@host/a",
        "https://b.s3.amazonaws.com/a.tar?X-Amz-Credential=x&X-Amz-Signature=y",
        "https://account.blob.core.windows.net/a?sv=1&sig=abc",
    ],
)
def test_addresses_that_let_their_bearer_in_are_refused(url):
    assert names_password(url)
    with pytest.raises(ValidationError, match="must hold no password"):
        Source.model_validate({"format": "webdataset", "path": url})


def test_other_addresses_are_not():
    for url in ("s3://b/a*.tar", "https://host/a?version=2", "/data/sig=1/a.tar"):
        assert not names_password(url)


def test_options_still_tell_stores_apart():
    assert Store("s3://b", {"key": "x"}) != Store("s3://b", {"key": "y"})
