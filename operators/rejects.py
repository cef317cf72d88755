"""Why a sample, or a whole shard, could not be used."""

from enum import StrEnum


class Reason(StrEnum):
    """Why one sample was rejected. The value is what the ledger shows."""

    MISSING_IMAGE = "missing_image"
    MISSING_TEXT = "missing_text"
    UNDECODABLE_IMAGE = "undecodable_image"
    IMAGE_TOO_LARGE = "image_too_large"
    MEMBER_TOO_LARGE = "member_too_large"
    BAD_JSON = "bad_json"
    BAD_TEXT_ENCODING = "bad_text_encoding"
    BAD_ROW = "bad_row"
    BAD_EMBEDDING = "bad_embedding"
    DUPLICATE_KEY = "duplicate_key"
    SPLIT_KEY = "split_key"
    UNSAFE_NAME = "unsafe_name"
    DUPLICATE_UID = "duplicate_uid"


class Damage(StrEnum):
    """Why one shard could not be read to its end. The value is what `summary.json` shows."""

    TRUNCATED = "truncated"
    UNREADABLE = "unreadable"
    MISSING = "missing"
