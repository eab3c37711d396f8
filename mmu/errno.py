"""Errors as KVM's functions return them: negative numbers, Linux's values (include/uapi/asm-generic/errno*.h)."""

from __future__ import annotations

from enum import IntEnum


class Errno(IntEnum):
    """The errors this model's paths may return; a path returns `-Errno.EBUSY` where C returns -EBUSY."""

    ENOENT = 2
    EINTR = 4
    EIO = 5
    EAGAIN = 11
    ENOMEM = 12
    EFAULT = 14
    EBUSY = 16
    EEXIST = 17
    EINVAL = 22
    EOPNOTSUPP = 95
    EHWPOISON = 133


ENOENT = Errno.ENOENT
EINTR = Errno.EINTR
EIO = Errno.EIO
EAGAIN = Errno.EAGAIN
ENOMEM = Errno.ENOMEM
EFAULT = Errno.EFAULT
EBUSY = Errno.EBUSY
EEXIST = Errno.EEXIST
EINVAL = Errno.EINVAL
EOPNOTSUPP = Errno.EOPNOTSUPP
EHWPOISON = Errno.EHWPOISON


def errno_name(result: int) -> str:
    """`-EBUSY` for -16, `0` for 0; a number that is no error of ours reads as itself."""
    try:
        return f"-{Errno(-result).name}"
    except ValueError:
        return str(result)


__all__ = [
    "EAGAIN",
    "EBUSY",
    "EEXIST",
    "EFAULT",
    "EHWPOISON",
    "EINTR",
    "EINVAL",
    "EIO",
    "ENOENT",
    "ENOMEM",
    "EOPNOTSUPP",
    "Errno",
    "errno_name",
]
