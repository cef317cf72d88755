"""Shards made bad in every way we know of, each a function of a seed, with what must have been left alone by it."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

BLOCK = tarfile.BLOCKSIZE
NUM_SAMPLES = 10
FLIPS = {"tar": 300, "image": 25, "parquet": 200}
CUTS = {"image": 10, "parquet": 60}
MAX_PIXELS, MAX_MEMBER_BYTES = 1_000_000, 1_000_000
"""The pool's limits, so that what is beyond them is small enough to be made by the thousand."""

Members = list[tuple[tarfile.TarInfo, bytes]]


@dataclass(frozen=True)
class Mutation:
    """One bad shard.

    Attributes:
        name: says what was done, and tells it from all others.
        file: the shard's name.
        data: its bytes.
        untouched: keys of samples that must be read as if nothing had happened.
    """

    name: str
    file: str
    data: bytes
    untouched: frozenset[str] = frozenset()


def mutations(seed: int) -> Iterator[Mutation]:
    """All of them."""
    rng = np.random.default_rng(seed)
    yield from _tar_cuts()
    yield from _tar_flips(rng)
    yield from _hostile_members()
    yield from _bad_parts(rng)
    yield from _tables(rng)


def pictures() -> dict[str, bytes]:
    """A small picture in every format and mode that users have."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).resize((48, 40))
    made = {
        "jpg": (noise, "JPEG", {}),
        "cmyk.jpg": (noise.convert("CMYK"), "JPEG", {}),
        "progressive.jpg": (noise, "JPEG", {"progressive": True}),
        "png": (noise, "PNG", {}),
        "deep.png": (Image.fromarray(rng.integers(0, 2**16, (40, 48), dtype=np.uint16)), "PNG", {}),
        "palette.png": (noise.convert("P"), "PNG", {}),
        "webp": (noise, "WEBP", {}),
        "gif": (noise.convert("P"), "GIF", {}),
        "bmp": (noise, "BMP", {}),
        "tif": (noise, "TIFF", {"compression": "tiff_lzw"}),
    }
    return {name: _saved(*how) for name, how in made.items()}


def samples() -> Members:
    """The members of a sound tar: ten samples of an image, a caption and metadata."""
    members: Members = []
    for number, (name, data) in enumerate(pictures().items()):
        key, ext = f"{number:04d}", name.rpartition(".")[2]
        members.append(_file(f"{key}.{ext}", data))
        members.append(_file(f"{key}.txt", f"caption {number}".encode()))
        members.append(_file(f"{key}.json", json.dumps({"n": number}).encode()))
    return members


def tar(members: Members) -> bytes:
    """The bytes of a tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def keys(members: Members) -> frozenset[str]:
    """The keys of samples."""
    return frozenset(info.name.partition(".")[0] for info, _ in members)


def _tar_cuts() -> Iterator[Mutation]:
    members = samples()
    data = tar(members)
    ends = _ends(members)
    for cut in range(0, len(data), BLOCK):
        before = frozenset(key for key, end in ends.items() if end < cut)  # else a further part of it may be lost
        yield Mutation(f"tar cut at {cut}", "cut.tar", data[:cut], before)


def _tar_flips(rng: np.random.Generator) -> Iterator[Mutation]:
    members = samples()
    data, ends = tar(members), _ends(members)
    spans = _bodies(members)
    last = max(ends.values())
    for bit in rng.choice(last * 8, FLIPS["tar"], replace=False).tolist():
        inside = next((key for key, start, end in spans if start <= bit // 8 < end), None)
        header = bit // 8 // BLOCK * BLOCK
        before = {key for key, end in ends.items() if end < header}  # one that ends there may have had a further part
        untouched = before if inside is None else set(ends) - {inside}
        yield Mutation(f"tar bit {bit} flipped", "flip.tar", _flipped(data, bit), frozenset(untouched))


def _hostile_members() -> Iterator[Mutation]:
    names = [
        *(
            "../../outside.jpg",
            "/absolute.jpg",
            "a/../../b.jpg",
            "..",
            ".",
            ".jpg",
            "noext",
            "C:\\x.jpg",
            "a\\..\\b.jpg",
        ),
        *("new\nline.jpg", "nul\0byte.jpg", "tab\t.jpg", "\u202egnp.jpg", "\udcff.jpg", "UPPER.JPG", "a//b.jpg"),
        *(
            "a/./b.jpg",
            "x" * 300 + ".jpg",
            "y/" * 3000 + "z.jpg",
            "~.jpg",
            "$(touch x).jpg",
            "%2e%2e.jpg",
            "k.a.b.c.jpg",
        ),
    ]
    picture = pictures()["jpg"]
    for name in names:
        yield _between(f"member named {name[:30]!r}", [_file(name, picture)])
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        info = tarfile.TarInfo("odd.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        yield _between(f"member of type {kind!r}", [(info, b"")])
    again = [part for part in samples() if part[0].name.startswith("0001")]
    yield _between("a key that returns", again)
    yield _between("an extension twice", [_file("dd.jpg", picture), _file("dd.JPG", picture)])
    for size in (2**33, 2**62):
        header = tarfile.TarInfo("huge.jpg")
        header.size = size
        whole, ends = tar(samples()), _ends(samples())
        at = ends["0004"]
        cut = frozenset(key for key, end in ends.items() if end < at)
        yield Mutation(f"a member of {size} bytes", "huge.tar", whole[:at] + header.tobuf() + whole[at:], cut)
    for record in ("30 size=-5\n", "99999999 path=x\n", "9 path=\n", "20 path=../../x.jpg\n", "no length\n"):
        info = tarfile.TarInfo("pax")
        info.type = tarfile.XHDTYPE
        info.size = len(record)
        at = _ends(samples())["0004"]
        whole = tar(samples())
        head = info.tobuf() + record.encode().ljust(BLOCK, b"\0")
        before = frozenset(key for key, end in _ends(samples()).items() if end < at)
        yield Mutation(f"pax record {record!r}", "pax.tar", whole[:at] + head + whole[at:], before)


def _bad_parts(rng: np.random.Generator) -> Iterator[Mutation]:
    """A sample in the middle whose image, caption or metadata is bad."""
    images = {"empty": b"", "text": b"not an image at all", "html": b"<html>404</html>", "svg": b"<svg/>", **_bombs()}
    for name, data in pictures().items():
        for cut in np.linspace(1, len(data) - 1, CUTS["image"]).astype(int).tolist():
            images[f"{name} cut at {cut}"] = data[:cut]
        for bit in rng.choice(len(data) * 8, FLIPS["image"], replace=False).tolist():
            images[f"{name} bit {bit} flipped"] = _flipped(data, bit)
    for name, data in images.items():
        ext = name.split()[0].rpartition(".")[2] if name[0] != "b" else "png"
        yield _between(f"image: {name}", [_file(f"bad.{ext}", data), _file("bad.txt", b"a caption")])
    texts = [
        b"",
        b"  ",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"a\0b",
        b"\xef\xbb\xbfbom",
        b"x" * (MAX_MEMBER_BYTES + 1),
        b"\xf0\x9f\x90\x88",
    ]
    for text in texts:
        yield _between(f"caption {text[:8]!r}", [_file("bad.jpg", pictures()["jpg"]), _file("bad.txt", text)])
    records = [
        *(b"", b"{", b"[]", b"3", b"null", b'"text"', b"{'a': 1}", b'{"a": NaN}', b'{"a": 1e999}', b'{"a": "\xff"}'),
        *(b'{"a": 1, "a": 2}', b'{"uid": 5}', b'{"uid": "zz"}', b'{"\\ud800": 1}', b'{"a": "\\ud800"}', b"[" * 100_000),
        *(b'{"a":' * 500 + b"1" + b"}" * 500, b'{"a": ' + b"9" * 5_000 + b"}", b'{"a": "' + b"x" * 900_000 + b'"}'),
    ]
    for number, record in enumerate(records):
        members = [_file("bad.jpg", pictures()["jpg"]), _file("bad.txt", b"a caption"), _file("bad.json", record)]
        yield _between(f"metadata {number}: {record[:12]!r}", members)


def _tables(rng: np.random.Generator) -> Iterator[Mutation]:
    images = [data for _, data in zip(range(NUM_SAMPLES), pictures().values(), strict=False)]
    captions = [f"caption {number}" for number in range(NUM_SAMPLES)]
    data = _parquet({"image": images, "text": captions, "n": list(range(NUM_SAMPLES))})
    for cut in np.linspace(0, len(data) - 1, CUTS["parquet"]).astype(int).tolist():
        yield Mutation(f"parquet cut at {cut}", "cut.parquet", data[:cut])
    for bit in rng.choice(len(data) * 8, FLIPS["parquet"], replace=False).tolist():
        yield Mutation(f"parquet bit {bit} flipped", "flip.parquet", _flipped(data, bit))
    columns = {
        "nulls": {"image": [None] * 3, "text": [None] * 3},
        "structs": {"image": [{"bytes": images[0], "path": None}, None], "text": ["a", "b"]},
        "text of bytes": {"image": images[:2], "text": [b"\xff\xfe", b"b"]},
        "nested": {"image": images[:1], "text": ["a"], "deep": [[[[{"a": [1.5, float("nan")]}]]]]},
        "empty": {"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())},
        "dates": {"image": images[:1], "text": ["a"], "when": pa.array([2**62], pa.timestamp("us"))},
    }
    for name, table in columns.items():
        yield Mutation(f"parquet of {name}", "types.parquet", _parquet(table))


def _bombs() -> dict[str, bytes]:
    """Images whose headers promise what would fill the memory."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    def png(width: int, height: int, body: bytes) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body, 9)) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + parts

    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(64 * 2**20), 9))
    sound = png(8, 8, bytes(8 * 25))
    gif = bytearray(pictures()["gif"])
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    return {
        "bomb of 30,000 x 30,000": png(30_000, 30_000, bytes(1000)),
        "bomb of 2^31 x 1": png(2**31 - 1, 1, bytes(1000)),
        "bomb of pixels": png(2_000, 2_000, bytes(2_000 * 6_001)),
        "bomb of text": sound[:33] + text + sound[33:],
        "bomb of a screen": bytes(gif),
    }


def _between(name: str, members: Members) -> Mutation:
    """Members amid sound samples, all of which are untouched."""
    around = samples()
    middle = len(around) // 2
    return Mutation(name, "amid.tar", tar(around[:middle] + members + around[middle:]), keys(around))


def _ends(members: Members) -> dict[str, int]:
    """Where in the tar each sample ends."""
    ends: dict[str, int] = {}
    for (info, _), (_, end) in zip(members, _places(members), strict=True):
        ends[info.name.partition(".")[0]] = end
    return ends


def _bodies(members: Members) -> list[tuple[str, int, int]]:
    """Key, start and end of the data of each member, padding included."""
    return [(info.name.partition(".")[0], *span) for (info, _), span in zip(members, _places(members), strict=True)]


def _places(members: Members) -> list[tuple[int, int]]:
    places, at = [], 0
    for _, data in members:
        start = at + BLOCK
        at = start + -(-len(data) // BLOCK) * BLOCK
        places.append((start, at))
    return places


def _file(name: str, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info, data


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _saved(image: Image.Image, kind: str, options: dict[str, object]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _parquet(columns: dict[str, Sequence[object] | pa.Array]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()
