"""Whether the host's memory is enough, asked before it is filled: a process that runs out of it is killed without a word."""

from pplex.runtime.cgroup import available_memory


def lacking_memory(needed: int) -> str | None:
    """What is wrong with asking for `needed` bytes on this machine; None where nothing is, or nobody knows."""
    free = available_memory()
    if free is None or free >= needed:
        return None
    return f"that takes about {needed / 1e9:.0f} GB of memory, of which {free / 1e9:.0f} GB are free here"
