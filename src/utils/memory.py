"""How the process takes memory from the operating system."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names and numbers of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next allocation of this process.

    By default it hands large blocks back to the system, which fills them with zeros, page by page,
    when the next training step asks for the same again.

    Returns:
        Whether it did: False where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # 32 MiB is the largest threshold that glibc takes
    done = libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20) and libc.mallopt(
        _M_TRIM_THRESHOLD, 2**31 - 1
    )
    return bool(done)
