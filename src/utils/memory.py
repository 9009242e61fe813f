"""Configure how the process allocates memory."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for later allocations of this process.

    By default, it returns large blocks to the system, which has to zero them page by page when the
    next training step allocates the same memory again.

    Returns:
        Whether this worked; False if the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # 32 MiB is the largest threshold that glibc accepts
    done = libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20) and libc.mallopt(
        _M_TRIM_THRESHOLD, 2**31 - 1
    )
    return bool(done)
