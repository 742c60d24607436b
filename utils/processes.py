"""Processes of this machine: how many cores they may use."""
import os


def cores() -> int:
    """Number of processor cores that this process may use: on a shared machine fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
