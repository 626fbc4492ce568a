"""How often the system's out-of-memory killer has struck here: whether a process that is gone was its victim.

Signal 9 alone tells nothing: people, batch systems and a mixer itself send it, too.
"""

from pathlib import Path

# What counts kills in a control group, by the name of the controller in /proc/self/cgroup (version 2 has none there).
_COUNTERS = {"": "sys/fs/cgroup{}/memory.events", "memory": "sys/fs/cgroup/memory{}/memory.oom_control"}
_OF_ALL = "proc/vmstat"


def oom_kills(root: Path = Path("/")) -> int | None:
    """In this process's control group, else on the whole system, since these began; None where nothing counts them."""
    for name in (*_own(root), *(counter.format("") for counter in _COUNTERS.values()), _OF_ALL):
        words = _read(root / name).split()
        if "oom_kill" in words[:-1]:
            return int(words[words.index("oom_kill") + 1])
    return None


def _own(root: Path) -> list[str]:
    """The counters of the groups that this process is in; a container may see its own as the root."""
    groups = [line.split(":", 2)[1:] for line in _read(root / "proc/self/cgroup").splitlines()]
    known = [(_COUNTERS.get(controllers), path.rstrip("/")) for controllers, path in groups]
    return [counter.format(path) for counter, path in known if counter]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
