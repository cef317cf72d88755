import io
import tarfile
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.export.slices import Slice, cut_at, cut_every, num_rows
from pipeline.export.tar import END, pack_member, packed_bytes
from pipeline.export.webdataset import cut_by_size, spans
from pipeline.readers.tar import TarReader


def slices(*counts):
    """One slice for each shard with rows."""
    return tuple(Slice(i, f"s{i}", f"v{i}", 0, count) for i, count in enumerate(counts) if count)


def rows(group):
    return [(piece.shard, row) for piece in group for row in range(piece.start, piece.stop)]


def test_cut_every_by_hand():
    first, second, third = cut_every(slices(5, 0, 2, 4), 4)
    assert first == (Slice(0, "s0", "v0", 0, 4),)
    assert second == (Slice(0, "s0", "v0", 4, 5), Slice(2, "s2", "v2", 0, 2), Slice(3, "s3", "v3", 0, 1))
    assert third == (Slice(3, "s3", "v3", 1, 4),)
    assert num_rows(second) == 4


def test_nothing_to_cut():
    assert cut_every((), 3) == []
    assert cut_every(slices(3), 3) == [slices(3)]
    assert cut_at(slices(2, 2), [2]) == [slices(2), (slices(0, 2)[0],)]


@given(st.lists(st.integers(0, 7), max_size=8), st.integers(1, 9))
def test_groups_are_the_rows_in_order(counts, size):
    groups = cut_every(slices(*counts), size)
    everything = rows(slices(*counts))
    assert [rows(group) for group in groups] == [everything[i : i + size] for i in range(0, len(everything), size)]
    assert all(len(piece) for group in groups for piece in group)


@given(st.lists(st.integers(1, 9), max_size=20), st.integers(1, 12))
def test_cut_by_size(sizes, limit):
    cuts = cut_by_size(np.array(sizes, dtype=np.int64), limit)
    parts = [sizes[i:j] for i, j in zip([0, *cuts], [*cuts, len(sizes)], strict=True)]
    assert all(sum(part) <= limit or len(part) == 1 for part in parts)
    # Greedy: the first sample of a part did not fit into the one before.
    assert all(sum(part) + after[0] > limit for part, after in pairwise(parts))


def test_spans_by_hand():
    # Images at 512..1512 and 5120..5620; between them a rejected row without an image; then text up to 9000.
    offset_N, bytes_N = np.array([512, 0, 5120]), np.array([1000, 0, 500])
    assert spans(offset_N, bytes_N, 9000).tolist() == [5120, 5120 - 1512, 9000 - 1512]
    assert spans(offset_N[:1], bytes_N[:1], 700).tolist() == [1512]  # gzipped: shorter than what it holds


@given(st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 3000), st.booleans()), min_size=1, max_size=8))
def test_a_span_is_never_too_small(samples):
    """Tars of samples with their text before or after the image."""
    archive, true_sizes, offsets = b"", [], []
    for i, (image, text, text_first) in enumerate(samples):
        members = [pack_member(f"{i}.jpg", bytes(image)), pack_member(f"{i}.txt", bytes(text))]
        offsets.append(len(archive) + 512 + (len(members[1]) if text_first else 0))
        archive += b"".join(members[::-1] if text_first else members)
        true_sizes.append(sum(map(len, members)))
    archive += END
    bound_N = spans(np.array(offsets), np.array([image for image, _, _ in samples]), len(archive))
    assert (bound_N >= true_sizes).all()


def test_members_have_no_time_and_no_owner():
    packed = pack_member("000000000000.jpg", b"abc")
    assert len(packed) == packed_bytes(3) == 1024
    assert packed[257:265] == b"ustar\x0000"
    with tarfile.open(fileobj=io.BytesIO(packed + END)) as tar:
        (member,) = tar
    assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)


@given(st.lists(st.tuples(st.text("abcé", min_size=1, max_size=150), st.binary(max_size=1100)), max_size=5))
def test_any_name_and_content_survives(members):
    archive = b"".join(pack_member(name, data) for name, data in members) + END
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert [(info.name, tar.extractfile(info).read()) for info in tar] == members
    reader = TarReader(io.BytesIO(archive))
    assert [(entry.name, reader.read(entry)) for entry in reader] == members
