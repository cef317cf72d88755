"""The cost of a pass over the shards (`pipeline.stream`): reading, decoding, encoding, and the parts made of it."""

from collections.abc import Mapping, Sequence

from pipeline.placement import encoders_on_cpus
from pipeline.plan.work import Inputs, Work
from pipeline.run import Modality

Need = tuple[str, Modality]

_CHUNK_TASKS = 4
"""Of each chunk: read, decode, encode, write its piece."""

_SEAL_SECONDS = 4e-9
"""For each byte of embeddings: compressing, hashing and writing it. Of 100 MB of float16 noise on one core."""

_PART_BYTES = 1_300
"""Of a part of embeddings beside its rows: footer, `part.json`, its entry in the manifest."""

_TASKS_PER_CPU = 3
"""Processes of tasks that come to run for each CPU: they ask for a quarter or half of one."""


def pass_over(inputs: Inputs, needs: Sequence[Need], rows: float, *, share: float = 1.0) -> Mapping[str, Work]:
    """The work of the first pass, by the artifact that it is done for: `samples`, then each model's embeddings.

    Args:
        inputs: of the plan.
        needs: (model, modality) pairs.
        rows: samples of the pool.
        share: of the shards that have not been read by an earlier run.
    """
    facts, rehearsed = inputs.facts, inputs.rehearsal.samples
    rows, parts = rows * share, facts.shards * share
    pieces = rows * inputs.sampled.table.nbytes / inputs.rehearsal.rows
    stored = rehearsed.bytes.of(parts, rows)
    samples = Work(
        read=facts.bytes * share + pieces,
        written=pieces + stored,
        stored=stored,
        cpu_seconds=rows * (facts.read_seconds + facts.decode_seconds) + rehearsed.seconds.of(parts, rows),
        worker_bytes=_decoder_bytes(inputs, needs),
    )
    return {"samples": samples + _tasks(inputs, rows, parts), **_embeddings(inputs, needs, rows, parts)}


def embed_survivors(inputs: Inputs, needs: Sequence[Need], rows: float, rows_in_pool: float) -> Mapping[str, Work]:
    """The work of a later pass, for the rows that still stand; its reading and decoding go to the first need."""
    if not needs:
        return {}
    facts = inputs.facts
    share = rows / max(1.0, rows_in_pool)
    reading = Work(
        read=facts.bytes * (share if _is_local(inputs) else 1.0),
        cpu_seconds=rows_in_pool * facts.read_seconds + rows * facts.decode_seconds,
        worker_bytes=_decoder_bytes(inputs, needs),
    )
    # A chunk covers eight times as many rows as it may hold (`pipeline.stream.chunks`).
    reading += _tasks(inputs, max(rows, rows_in_pool / 8), facts.shards)
    works = dict(_embeddings(inputs, needs, rows, facts.shards))
    first = next(iter(works))
    works[first] = reading + works[first]
    return works


def _embeddings(inputs: Inputs, needs: Sequence[Need], rows: float, parts: float) -> dict[str, Work]:
    """Preparing, encoding, storing. The encoders of a pass are one pool of actors, which load every model."""
    works: dict[str, Work] = {}
    for model, modality in needs:
        encoding = inputs.encoding(model, modality)
        start = encoding.start if not any(name.startswith(f"{model}.") for name in works) else None
        on_cpus = encoders_on_cpus(inputs.workers, inputs.facts.bytes)
        encoders = inputs.machines.gpus if encoding.gpu_seconds else on_cpus
        own_seconds = start.seconds - (inputs.rates.worker.seconds if works else 0.0) if start else 0.0
        stored = rows * encoding.row_bytes + parts * _PART_BYTES
        piece = rows * 2 * encoding.dim
        prepare = inputs.sampled.prepare_seconds.get(f"{model}.{modality}", 0.0)
        encode = 0.0 if encoding.gpu_seconds else encoding.cpu_seconds
        works[f"{model}.{modality}"] = Work(
            read=piece,
            written=piece + stored,
            stored=stored,
            cpu_seconds=rows * (prepare + encode) + piece * _SEAL_SECONDS,
            gpu_seconds=rows * encoding.gpu_seconds,
            start_seconds=encoders * max(0.0, own_seconds),
            worker_bytes=start.bytes if start else 0.0,
        )
    return works


def _tasks(inputs: Inputs, rows: float, parts: float) -> Work:
    """Ray's own part: a few tasks a chunk, one more a shard."""
    has_images = all(source.has_images for source in inputs.pool.sources)
    chunks = parts + rows / inputs.pool.chunk_samples if has_images else 0.0
    return Work(tasks=_CHUNK_TASKS * chunks + parts)


def _decoder_bytes(inputs: Inputs, needs: Sequence[Need]) -> float:
    """A worker with a chunk in its hands, packed and unpacked, and the largest image decoded twice over."""
    facts = inputs.facts
    prepared = [inputs.sampled.inputs.get(f"{model}.{modality}") for model, modality in needs]
    row = facts.image_bytes + sum(int(array[0].nbytes) for array in prepared if array is not None)
    chunk = min(inputs.pool.chunk_samples * row, 64 * 2**20 + inputs.pool.chunk_samples * (row - facts.image_bytes))
    libraries = [inputs.encoding(*need).start for need in needs]
    imports = max([inputs.rates.worker.bytes, *(start.bytes for start in libraries if start)])
    return imports + 2 * chunk + 6 * facts.max_pixels


def task_starts(inputs: Inputs) -> float:
    """CPU seconds of the processes that run tasks, which start once and serve all steps."""
    return _TASKS_PER_CPU * inputs.workers * inputs.rates.worker.seconds


def _is_local(inputs: Inputs) -> bool:
    return all("://" not in source.path for source in inputs.pool.sources)
