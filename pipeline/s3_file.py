"""An object of S3 open for reading in ranges, by connections that may break, stall or trickle."""

import asyncio
import random
from typing import Any

import s3fs.core
from fsspec.asyn import sync

from operators.errors import InputChanged
from pipeline import remote

SLOW_SECONDS = 30.0
SLOW_BYTES_PER_SECOND = 100_000
"""A connection gets this long, and a second more for each so many bytes, before another one takes over."""

_PIECE_BYTES = 1 << 16
_BROKEN = (*s3fs.core.S3_RETRYABLE_ERRORS, asyncio.TimeoutError)


class SteadyFile(s3fs.core.S3File):
    """s3fs's file, but what a broken connection brought is kept, and one that trickles is given up.

    A range goes on at the byte where it stopped. Only connections that bring nothing count as failures, so a link that
    is slow for good still gets there. Every answer must be of the version that was opened.
    """

    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = sync(self.fs.loop, self._fetch, start, end) if end > start else b""
        return data

    async def _fetch(self, start: int, end: int) -> bytes:
        data = bytearray()
        failures = 0
        while (missing := end - start - len(data)) > 0:
            limit = SLOW_SECONDS + missing / SLOW_BYTES_PER_SECOND
            try:
                await asyncio.wait_for(self._append(data, start + len(data), end), limit)
            except _BROKEN as error:
                failures = 0 if len(data) > end - start - missing else failures + 1
                if failures >= remote.ATTEMPTS:
                    raise
                remote.tell_retry(error, failures)
                await asyncio.sleep(random.uniform(0, remote.FIRST_PAUSE_SECONDS * 2**failures))
        return bytes(data)

    async def _append(self, data: bytearray, start: int, end: int) -> None:
        """Reads as much as one connection brings."""
        try:
            answer = await self.fs._call_s3(
                "get_object",
                Bucket=self.bucket,
                Key=self.key,
                Range=f"bytes={start}-{end - 1}",
                **s3fs.core.version_id_kw(self.version_id),
                **self.read_kw,
            )
        except Exception as error:
            if remote.error_code(error) in ("PreconditionFailed", "412"):
                raise self._changed() from error
            raise
        brought = 0
        try:
            self._check(answer, start)
            while piece := await answer["Body"].read(min(_PIECE_BYTES, end - start - brought)):
                data += piece
                brought += len(piece)
        finally:
            answer["Body"].close()
        if not brought:
            raise TimeoutError(f"s3://{self.path} gave no bytes from {start} on")

    def _check(self, answer: dict[str, Any], start: int) -> None:
        wanted = self.details.get("ETag")
        if None not in (wanted, answer.get("ETag")) and answer["ETag"] != wanted:
            raise self._changed()
        if start and "ContentRange" not in answer:
            rule = f"s3://{self.path} must come from byte {start} on, got all of it"
            raise NotImplementedError(f"{rule}: the store knows no ranges")

    def _changed(self) -> InputChanged:
        return InputChanged(f"s3://{self.path} must stay as it is while it is read, got another version: run again")
