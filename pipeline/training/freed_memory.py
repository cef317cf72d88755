"""What becomes of freed memory while a training runs on CPUs: it is kept for the next step.

Activations are freed after each step, and glibc gives back to the kernel what lies at the end of its heap or is large.
The next step then waits for the same pages to be mapped and zeroed again, which takes up to a sixth of all CPU time.
"""

import contextlib
import ctypes
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""The parameters of glibc's `mallopt`, as malloc.h numbers them."""
_NEVER, _NONE = -1, 0
_GLIBC_TRIM_THRESHOLD, _GLIBC_MMAP_MAX = 128 * 1024, 65_536


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keeps freed memory in this process for the length of the context, and returns it at the end.

    Without effect where the C library is not glibc.
    """
    libc = ctypes.CDLL(None)
    if not all(hasattr(libc, name) for name in ("mallopt", "malloc_trim")):
        yield
        return
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    libc.mallopt(_MMAP_MAX, _NONE)
    try:
        yield
    finally:
        libc.mallopt(_TRIM_THRESHOLD, _GLIBC_TRIM_THRESHOLD)
        libc.mallopt(_MMAP_MAX, _GLIBC_MMAP_MAX)
        libc.malloc_trim(0)
