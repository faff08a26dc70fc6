"""What keeps a student's process away from the grader, the network and other people's files, as far as Linux lets us.

Four layers, each used where the system has it: namespaces (no network, no sight of other processes), Landlock (reads
only Python and robustlab, writes only its own folder), a filter of system calls (no socket, nothing left for the next
test, no change of a file that is not opened), and another user where the grader is root. Limits on time, memory and
files hold everywhere. What was found is reported, so that nobody relies on a protection that is not there.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

NOBODY = 65534
_libc = ctypes.CDLL(None, use_errno=True)
_NEWNS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 24, 36, 38
_MS_PRIVATE_RECURSIVE = (1 << 18) | (1 << 14)
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF, _CAPSET = 444, 445, 446, 126  # on x86-64; the first three everywhere
_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute, read a file, list a folder
_READ_FILE = 1 << 0 | 1 << 2
_DEVICES = 1 << 6 | 1 << 11  # make a device: never
_PR_SET_SECCOMP, _FILTER, _X86_64, _X32 = 22, 2, 0xC000003E, 0x40000000
_ALLOWED, _REFUSED = 0x7FFF0000, 0x00050000 | errno.EPERM  # what a filter answers
_CALLS = (
    *(41, 53),  # socket, socketpair: a path leads to the services of a desktop, which Landlock does not look at
    *(29, 30, 31, 64, 65, 66, 220, 68, 69, 70, 71, 240),  # shared memory, semaphores, queues: they outlive a test
    *(248, 249, 250),  # the kernel's keys: so do they
    *(319, 447),  # memfd_create, memfd_secret: memory that no limit counts
    *(90, 91, 268, 452, 92, 93, 94, 260),  # chmod, chown and their like: Landlock has no right for them
    *(132, 235, 261, 280, 188, 189, 190, 463, 197, 198, 199, 466, 469),  # times and attributes of files
    *(101, 310, 311, 438, 272, 308, 165, 166, 155, 442, 161),  # other processes, namespaces, mounts
    *(298, 321, 323, 425, 426, 427),  # perf, bpf, userfaultfd, io_uring: parts of the kernel that nobody needs here
)
"""The numbers that these have on x86-64, the only machine with a filter."""
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # how many rights Landlock knows, by its version


PATIENCE, WITH_MODEL, AT_MOST = 3.0, 9.0, 20.0
"""How many seconds may go by per second of the processor, without those in which a test waits for one; where it asks a
model, whose answers wait for one, too; and in all."""


PROCESSES = 128
"""How many a test may have at a time."""


class Limits(TypedDict):
    """Of one test: seconds of the processor, megabytes of memory beyond the server's, megabytes of one file."""

    seconds: float
    memory_mb: int
    file_mb: int


def enter_namespaces(work: Path, wanted: bool = True) -> dict[str, str]:
    """Leave the network and other processes behind; returns what was found. Before torch, which starts threads.

    On success the caller goes on in a new process, which is the first of its namespace: when it ends, all in it end.
    """
    user, group = os.geteuid(), os.getegid()
    spaces = _NEWNS | _NEWIPC | _NEWPID | _NEWNET
    inside = wanted and _libc.unshare(spaces) == 0
    if wanted and not inside and _libc.unshare(spaces | _NEWUSER) == 0:
        inside = True
        for file, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            Path("/proc/self", file).write_text(text)
    if not inside:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        version = _landlock_version()
        network = "no sockets" if _filters() else "Landlock: no TCP" if version >= 4 else "open"
        return {"network": network, "processes": "Landlock: no signals" if version >= 6 else "open"}
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _libc.mount(b"none", b"/", None, _MS_PRIVATE_RECURSIVE, None)
    _libc.mount(b"proc", b"/proc", b"proc", 0, None)
    _libc.mount(b"tmpfs", os.fsencode(work), b"tmpfs", 0, b"size=256m,mode=711")
    return {"network": "namespace", "processes": "namespace"}


def file_protection(readable: Iterable[Path]) -> dict[str, str]:
    """What will hold of files, of system calls and of the user, said before the first test."""
    drops = os.geteuid() == 0 and all(_open_to_all(path) for path in readable)
    files = "Landlock" if _landlock_version() else "another user" if drops else "open"
    calls = "filter" if _filters() else "open"
    return {"files": files, "calls": calls, "user": "another user" if drops else "the grader's"}


def confine(work: Path, readable: list[Path], limits: Limits) -> None:
    """Of no return: the process may read ``readable``, write ``work``, and use what ``limits`` allow."""
    _limit(limits)
    version = _landlock_version()
    rules = _landlock_rules(version, work, readable) if version else -1
    if os.geteuid() == 0:
        drop = all(_open_to_all(path) for path in readable)
        for capability in range(64):
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        if drop:
            os.chown(work, NOBODY, NOBODY)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
    _drop_capabilities()
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if version:
        _check(_libc.syscall(_RESTRICT_SELF, rules, 0), "landlock_restrict_self")
        os.close(rules)
    os.chdir(work)
    _filter_calls()


def all_but(root: Path, hidden: Iterable[Path]) -> Iterator[Path]:
    """The largest files and folders below ``root`` that hold none of ``hidden``."""
    hidden = [path for path in hidden if path == root or root in path.parents]
    if not hidden:
        yield root
    elif root not in hidden:
        for child in sorted(root.iterdir()):
            if not child.is_symlink():
                yield from all_but(child, hidden)


def beyond_in_sum(limits: Limits) -> str:
    """Of what a test's processes may have together, that of which they have more; nothing outside of a namespace."""
    if os.getpid() != 1:
        return ""
    processes = [path for path in Path("/proc").glob("[0-9]*") if path.name != "1"]
    if len(processes) > PROCESSES:
        return "processes"
    ours, theirs = _pages(Path("/proc/self")), 0  # each begins with ours, of which it has none of its own
    for process in processes:
        with suppress(OSError):
            theirs += max(0, _pages(process) - ours)
    return "memory" if theirs * resource.getpagesize() > limits["memory_mb"] << 20 else ""


def _pages(process: Path) -> int:
    """How many pages a process has that are no file's."""
    _, resident, of_files, *_ = (process / "statm").read_text().split()
    return int(resident) - int(of_files)


def end_all_others(first: int) -> None:
    """End what a test left behind: all of the namespace, or the test's group and whatever was handed to us."""
    if os.getpid() == 1:
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        _reap(0)
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(first, signal.SIGKILL)
    for _ in range(100):  # an orphan's children come to us when it ends
        _reap(os.WNOHANG)
        orphans = list(_children())
        if not orphans:
            return
        for orphan in orphans:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(orphan, signal.SIGKILL)


def _reap(options: int) -> None:
    """Take leave of children that have ended; with no options, of all, which must be about to end."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, options)[0]:
            pass


def _children() -> Iterator[int]:
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                yield int(status.parent.name)


def _limit(limits: Limits) -> None:
    seconds, used = max(1, math.ceil(limits["seconds"])), int(Path("/proc/self/statm").read_text().split()[0])
    memory = used * resource.getpagesize() + limits["memory_mb"] * 2**20
    for name, value, more in (
        (resource.RLIMIT_CPU, seconds, 1),  # a second more for who ignores the signal
        (resource.RLIMIT_AS, memory, 0),
        (resource.RLIMIT_FSIZE, limits["file_mb"] * 2**20, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, 256, 0),
        (resource.RLIMIT_NPROC, PROCESSES, 0),
    ):
        hard = resource.getrlimit(name)[1]
        most = value + more if hard == resource.RLIM_INFINITY else min(value + more, hard)
        resource.setrlimit(name, (min(value, most), most))


def _open_to_all(path: Path) -> bool:
    """Whether every user may look into a path."""
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents) if folder.is_dir())


def _drop_capabilities() -> None:
    header, nothing = struct.pack("<Ii", 0x20080522, 0), struct.pack("<6I", *[0] * 6)
    if sys.platform == "linux" and os.uname().machine == "x86_64":
        _libc.syscall(_CAPSET, header, nothing)


def _filters() -> bool:
    """Whether the kernel takes a filter of system calls: given none, it says that the address is wrong."""
    known = sys.platform == "linux" and os.uname().machine == "x86_64"
    return known and _libc.prctl(_PR_SET_SECCOMP, _FILTER, None, 0, 0) < 0 and ctypes.get_errno() == errno.EFAULT


def _filter_calls() -> None:
    """From now on, what `_CALLS` lists is not permitted, nor any call by the numbers of another machine."""
    if not _filters():
        return
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06  # BPF: a word, two jumps, the answer
    count = len(_CALLS)  # a jump says how many lines it leaves out: these lead to the last one
    code = [(load, 0, 0, 4), (equal, 0, count + 3, _X86_64), (load, 0, 0, 0), (at_least, count + 1, 0, _X32)]
    code += [(equal, count - i, 0, number) for i, number in enumerate(_CALLS)]
    code += [(give, 0, 0, _ALLOWED), (give, 0, 0, _REFUSED)]
    raw = b"".join(struct.pack("<HBBI", *line) for line in code)
    lines = ctypes.create_string_buffer(raw)
    program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(code), ctypes.addressof(lines)))
    _check(_libc.prctl(_PR_SET_SECCOMP, _FILTER, program, 0, 0), "filter of system calls")


def _landlock_version() -> int:
    """0 where the kernel has none."""
    return max(0, _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1))


def _landlock_rules(version: int, work: Path, readable: list[Path]) -> int:
    every = (1 << _FS_RIGHTS.get(version, 16)) - 1
    words = [every, *([0b11] if version >= 4 else []), *([0b11] if version >= 6 else [])]
    attributes = struct.pack(f"<{len(words)}Q", *words)
    rules = _check(_libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0), "landlock")
    for path in readable:
        _allow(rules, path, _READ if path.is_dir() else _READ_FILE)
    _allow(rules, work, every & ~_DEVICES)
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        _allow(rules, Path(device), _READ_FILE | 1 << 1)
    return rules


def _allow(rules: int, path: Path, rights: int) -> None:
    with suppress(FileNotFoundError):
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        _check(_libc.syscall(_ADD_RULE, rules, 1, struct.pack("<Qi", rights, folder), 0), f"landlock rule of {path}")
        os.close(folder)


def _check(answer: int, what: str) -> int:
    if answer < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return answer
