"""Takes from this process, for good, all that a computation does not need.

Always: a filter of system calls that leaves one process with what it has: it may compute, have threads, read files and
use its pipes. It cannot start a process, signal or inspect one, open a socket, or make anything that outlives it, so
that its own limits are limits of everything it does. Whatever is not in the list does not exist, today's calls and
tomorrow's. Files are hidden by namespaces, or by Landlock where a system refuses those.
"""

# Importing pathlib would be a tenth of the time that a program takes.
# ruff: noqa: PTH100, PTH103, PTH110, PTH112, PTH120, PTH123

import ctypes
import os
import resource
import signal
import struct
import sys
from contextlib import suppress

MEMORY = 1 << 30  # bytes of address space
FOLDER_BYTES = 16 << 20  # all files together
_LIBC = ctypes.CDLL(None, use_errno=True)
_FIRST_USER = 1_900_000_000  # nobody's, and another one for each process, which root takes

# Name and number on x86-64 and ARM64; there, the older ones do not exist.
_COMPUTE = """
read 0 63, write 1 64, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -, lseek 8 62, mmap 9 222, mprotect 10 226,
munmap 11 215, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, pread64 17 67, readv 19 65,
writev 20 66, access 21 -, pipe 22 -, select 23 -, sched_yield 24 124, mremap 25 216, madvise 28 233, dup 32 23,
dup2 33 -, pause 34 -, nanosleep 35 101, getitimer 36 102, alarm 37 -, setitimer 38 103, getpid 39 172, sendto 44 206,
recvfrom 45 207, shutdown 48 210, getsockname 51 204, getpeername 52 205, setsockopt 54 208, getsockopt 55 209,
exit 60 93, wait4 61 260, uname 63 160, getcwd 79 17, chdir 80 49, fchdir 81 50, readlink 89 -, umask 95 166,
gettimeofday 96 169, getrlimit 97 163, getrusage 98 165, sysinfo 99 179, times 100 153, getuid 102 174, getgid 104 176,
geteuid 107 175, getegid 108 177, getppid 110 173, getpgrp 111 -, getgroups 115 158, rt_sigtimedwait 128 137,
rt_sigsuspend 130 133, sigaltstack 131 132, statfs 137 43, fstatfs 138 44, arch_prctl 158 -, gettid 186 178, time 201 -,
futex 202 98, sched_getaffinity 204 123, epoll_create 213 -, getdents64 217 61, set_tid_address 218 96,
restart_syscall 219 128, clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115, exit_group 231 94,
epoll_wait 232 -, epoll_ctl 233 21, newfstatat 262 79, readlinkat 267 78, faccessat 269 48, pselect6 270 72,
ppoll 271 73, set_robust_list 273 99, epoll_pwait 281 22, eventfd2 290 19, epoll_create1 291 20, dup3 292 24,
pipe2 293 59, getrandom 318 278, membarrier 324 283, statx 332 291, rseq 334 293, close_range 436 436,
faccessat2 439 439
"""
_WRITE = """
open 2 -, flock 73 32, fsync 74 82, fdatasync 75 83, truncate 76 45, ftruncate 77 46, rename 82 -, mkdir 83 -,
rmdir 84 -, creat 85 -, link 86 -, unlink 87 -, symlink 88 -, chmod 90 -, fchmod 91 52, openat 257 56, mkdirat 258 34,
unlinkat 263 35, renameat 264 38, linkat 265 37, symlinkat 266 36, fchmodat 268 53, utimensat 280 88, renameat2 316 276
"""
_ANY, _WRITING, _THREAD, _FIONBIO, _STREAM = 0xFFFFFFFF, 0o20001103, 0x10000, 0x5421, 1
# Calls allowed with some arguments only: which one, and what it is under a mask.
_PARTLY = [
    ("2 -", 1, _WRITING, 0),  # open
    ("257 56", 2, _WRITING, 0),  # openat
    ("16 29", 1, _ANY, _FIONBIO),  # ioctl
    ("53 199", 1, 0xF, _STREAM),  # socketpair; a datagram could be sent elsewhere
    ("72 25", 1, _ANY ^ 7, 0),  # fcntl: none that makes the kernel send signals to others
    ("72 25", 1, _ANY, 1030),  # fcntl(F_DUPFD_CLOEXEC)
    ("302 261", 0, _ANY, 0),  # prlimit64, of itself
]
_CLONE = ("56 220", 0, _THREAD, _THREAD)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, and the kernel's constant


def confine(level: str, seconds: int, packages: list[str]) -> None:
    """Put this process, or with namespaces a child that goes on in its place, behind the walls of a level."""
    shown = [sys.base_prefix, *sys.path, *packages, "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime"]
    shown = [path for path in (*shown, "/dev/null", "/dev/zero", "/dev/urandom") if os.path.exists(path)]
    user = _FIRST_USER + os.getpid()
    if level == "namespaces":
        _enter_namespaces()
        _show_only(shown)
        _go_on_as_child()
    _leave_root(user)
    limits = {"CPU": seconds, "AS": MEMORY, "FSIZE": FOLDER_BYTES, "CORE": 0, "NOFILE": 64}
    if level == "namespaces" or os.getuid() == user:
        limits["NPROC"] = 64  # threads; else those of all other programs of this user would count
    _limit(limits)
    _checked(_LIBC.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)))
    _checked(_LIBC.prctl(38, 1, 0, 0, 0))  # PR_SET_NO_NEW_PRIVS
    if level == "landlock":
        _read_only([path for path in shown if os.path.isdir(path)])
    bind_to_parent()
    _filter_calls(_allowed(writing=level == "namespaces", threads=os.getuid() != 0))


def bind_to_parent() -> None:
    """End when the parent does, and be closed to inspection."""
    _checked(_LIBC.prctl(1, signal.SIGKILL, 0, 0, 0))  # PR_SET_PDEATHSIG
    _checked(_LIBC.prctl(4, 0, 0, 0, 0))  # PR_SET_DUMPABLE


def adopt_orphans() -> None:
    """Become the parent of a child's children when it dies: the system's first process may not care for them."""
    _checked(_LIBC.prctl(36, 1, 0, 0, 0))  # PR_SET_CHILD_SUBREAPER


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _enter_namespaces() -> None:
    user, group = os.getuid(), os.getgid()
    flags = 0x20000 | 0x4000000 | 0x8000000 | 0x20000000 | 0x40000000  # NS, UTS, IPC, PID, NET
    _checked(_LIBC.unshare(flags | (0x10000000 if user else 0)))
    if user:
        _checked(_LIBC.prctl(4, 1, 0, 0, 0))  # PR_SET_DUMPABLE: its own files in /proc are root's without it
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def _show_only(paths: list[str]) -> None:
    """A tree of files with these paths, read-only, and an empty /tmp, which becomes the working folder."""
    bind, recursive, private, detach, new = 0x1000, 0x4000, 0x40000, 2, "/proc"  # a folder that is there, and unused
    size = f"size={FOLDER_BYTES},nr_inodes=4096".encode()
    _checked(_LIBC.mount(None, b"/", None, recursive | private, None))
    _checked(_LIBC.mount(b"tmpfs", new.encode(), b"tmpfs", 0, b"mode=755," + size))
    for path in paths:
        target = new + os.path.abspath(path)
        if os.path.exists(target):
            continue  # within another
        os.makedirs(target if os.path.isdir(path) else os.path.dirname(target), exist_ok=True)
        if not os.path.isdir(path):
            os.close(os.open(target, os.O_CREAT))
        _checked(_LIBC.mount(path.encode(), target.encode(), None, bind | recursive, None))
    os.makedirs(f"{new}/tmp", exist_ok=True)
    read_only = struct.pack("QQQQ", 1, 0, 0, 0)
    _checked(_LIBC.syscall(442, -100, new.encode(), 0x8000, read_only, len(read_only)))  # mount_setattr, all below
    _checked(_LIBC.mount(b"tmpfs", f"{new}/tmp".encode(), b"tmpfs", 0, b"mode=1777," + size))
    os.chdir(new)
    _checked(_LIBC.pivot_root(b".", b"."))
    _checked(_LIBC.umount2(b".", detach))
    os.chdir("/tmp")


def _go_on_as_child() -> None:
    """Become process 1 of the new namespace. The parent hands on its exit status."""
    child = os.fork()
    if child:
        os.closerange(0, 64)
        bind_to_parent()
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)


def _leave_root(user: int) -> None:
    """From root to a user that owns nothing, if there is one and it may read Python's files."""
    if os.getuid():
        return
    for number in (user, 65534):  # a container may have few users
        with suppress(OSError):
            os.setgroups([])
            os.setegid(number)
            os.seteuid(number)
            open(os.__file__).close()
            os.seteuid(0)
            os.setresgid(number, number, number)
            os.setresuid(number, number, number)
            return
        os.seteuid(0)
        os.setegid(0)


def _limit(limits: dict[str, int]) -> None:
    for kind, limit in limits.items():
        number = getattr(resource, f"RLIMIT_{kind}")
        hard = resource.getrlimit(number)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(number, (limit, limit))


def _read_only(folders: list[str]) -> None:
    """Landlock: of all files, only what is in these folders can be read, and nothing written."""
    every, reading = (1 << 13) - 1, 1 | 4 | 8  # execute (map), read a file, read a folder
    rules = _checked(_LIBC.syscall(444, struct.pack("Q", every), 8, 0))
    for folder in folders:
        opened = os.open(folder, os.O_PATH)
        _checked(_LIBC.syscall(445, rules, 1, struct.pack("=Qi", reading, opened), 0))
        os.close(opened)
    _checked(_LIBC.syscall(446, rules, 0))
    os.close(rules)
    os.chdir(os.path.dirname(os.__file__))


def _allowed(*, writing: bool, threads: bool) -> list[tuple[str, int, int, int]]:
    names = _COMPUTE + ("," + _WRITE if writing else "")
    whole = [(call.strip().partition(" ")[2], 0, 0, 0) for call in names.split(",")]
    return whole + _PARTLY + ([_CLONE] if threads else [])


def _filter_calls(allowed: list[tuple[str, int, int, int]]) -> None:
    """Seccomp: what is not allowed does not exist (ENOSYS), as if the kernel were an old one."""
    column, machine = _MACHINES[os.uname().machine]
    load, equal, mask, end = 0x20, 0x15, 0x54, 0x06
    steps = [(load, 0, 0, 4), (equal, 1, 0, machine), (end, 0, 0, 0x80000000), (load, 0, 0, 0)]
    for numbers, argument, bits, value in allowed:
        number = numbers.split()[column]
        if number == "-":
            continue
        test = [(load, 0, 0, 16 + 8 * argument), (mask, 0, 0, bits), (equal, 0, 1, value)] if bits else []
        body = [*test, (end, 0, 0, 0x7FFF0000), *([(load, 0, 0, 0)] if bits else [])]
        steps += [(equal, 0, len(body), int(number)), *body]
    steps.append((end, 0, 0, 0x50000 | 38))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code))
    _checked(_LIBC.prctl(22, 2, program, 0, 0))
