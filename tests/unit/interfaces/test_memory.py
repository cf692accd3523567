"""How the daemon keeps its memory; in a process of its own, for it holds for all of one."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_ROUNDS = 20
_BATCH_MIB = 8
_SCRIPT = f"""
import resource
from dstore.interfaces.daemon import keep_one_heap

keep_one_heap()

def batch():
    return [b"x" * 2**20 for _ in range({_BATCH_MIB})]

batch(), batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({_ROUNDS}):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_memory_of_a_batch_serves_the_next() -> None:
    command = [sys.executable, "-c", _SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # Fewer than the pages of one batch; without it, nearly those of all.
    assert int(done.stdout) < _BATCH_MIB * 256
