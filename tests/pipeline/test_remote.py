import errno

import pytest
import s3fs
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from s3fs.errors import translate_boto_error

from operators.errors import InputChanged
from pipeline import remote
from pipeline.remote import error_code, is_final, open_location, read_whole, retry, version_of


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_SECONDS", 0)


def answer(code: str) -> Exception:
    """An error of S3's as s3fs raises it."""
    return translate_boto_error(ClientError({"Error": {"Code": code, "Message": "no"}}, "GetObject"))


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(),
        FileExistsError(),
        InputChanged("changed"),
        ValueError("Invalid endpoint"),
        NoCredentialsError(),
        answer("InvalidAccessKeyId"),
        answer("SignatureDoesNotMatch"),
        answer("NoSuchBucket"),
        OSError(errno.ENOSPC, "full"),
        PermissionError(errno.EACCES, "a disk's"),
    ],
)
def test_what_cannot_pass_is_not_tried_again(error):
    calls = []

    def fail():
        calls.append(1)
        raise error

    assert is_final(error)
    with pytest.raises(type(error)):
        retry(fail)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "error",
    [
        answer("SlowDown"),
        answer("AccessDenied"),
        answer("403"),
        answer("InternalError"),
        answer("MethodNotAllowed"),
        ConnectionResetError(),
        TimeoutError(),
        EndpointConnectionError(endpoint_url="http://here"),
    ],
)
def test_what_may_pass_is(error):
    assert not is_final(error)


def test_pauses_double_at_most(monkeypatch):
    pauses = []
    monkeypatch.setattr(remote.random, "uniform", lambda low, high: pauses.append((low, high)) or 0)
    monkeypatch.setattr(remote, "FIRST_PAUSE_SECONDS", 0.5)

    def fail():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        retry(fail)
    assert pauses == [(0, 0.5), (0, 1.0), (0, 2.0)]


def test_codes():
    assert error_code(answer("SlowDown")) == "SlowDown"
    assert error_code(ClientError({"Error": {"Code": 503}}, "PutObject")) == "503"
    assert error_code(OSError()) is None
    assert error_code(ClientError({}, "PutObject")) is None


def test_s3_is_opened_with_one_policy():
    user = {"config_kwargs": {"read_timeout": 7}, "endpoint_url": "http://127.0.0.1:1", "anon": True}
    fs, path = open_location("s3://bucket/a/b", user)
    assert path == "bucket/a/b"
    assert fs.config_kwargs == {"read_timeout": 7, "retries": {"mode": "standard", "total_max_attempts": 6}}
    assert (fs.endpoint_url, fs.anon) == ("http://127.0.0.1:1", True)
    assert user["config_kwargs"] == {"read_timeout": 7}
    assert open_location("s3://bucket/c", user)[0] is fs
    own = open_location("s3://bucket", {"config_kwargs": {"retries": {"max_attempts": 1}}})[0]
    assert own.config_kwargs == {"retries": {"max_attempts": 1}}
    assert s3fs.core.CUSTOM_ERROR_HANDLER(answer("AccessDenied"))
    assert s3fs.core.CUSTOM_ERROR_HANDLER(ClientError({"Error": {"Code": "500"}}, "GetObject"))
    assert not s3fs.core.CUSTOM_ERROR_HANDLER(answer("NoSuchKey"))
    s3fs.S3FileSystem.clear_instance_cache()


def test_other_stores_are_opened_as_they_are(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    assert open_location(str(tmp_path))[1] == str(tmp_path)
    assert read_whole(str(tmp_path / "a")) == b"one"
    with pytest.raises(FileNotFoundError):
        read_whole(str(tmp_path / "b"))


def test_versions():
    assert version_of({"ETag": '"a"', "LastModified": "now"}) == '"a"'
    assert version_of({"mtime": 1.5}) == "1.5"
    assert version_of({"size": 1}) == ""
