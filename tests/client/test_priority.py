"""Work gives way: the kernel says what a process was lowered to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from client.priority import NICENESS, OOM_SCORE, spare_threads

SCRIPT = """
import ctypes, json, os, pathlib, platform, sys, threading
sys.path.insert(0, sys.argv[1])
from client.priority import limit_threads, lower_priority
done = lower_priority()
limit_threads(3)
get = {"x86_64": 252, "aarch64": 31, "riscv64": 31, "armv7l": 315, "armv6l": 315}
number = get.get(platform.machine())
found = {}
def look():
    disk = ctypes.CDLL(None).syscall(number, 1, 0) >> 13 if number else None
    found["thread"] = {"nice": os.getpriority(os.PRIO_PROCESS, 0), "disk": disk}
thread = threading.Thread(target=look)
thread.start()
thread.join()
score = int(pathlib.Path("/proc/self/oom_score_adj").read_text())
print(json.dumps({"done": done, "score": score, **found["thread"],
                  "threads": os.environ["OMP_NUM_THREADS"], "again": lower_priority()}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux keeps these priorities")
def test_a_process_and_its_later_threads_give_way() -> None:
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, root], capture_output=True, text=True, check=True
    )
    found = json.loads(run.stdout)
    assert found["nice"] == NICENESS
    assert found["score"] >= OOM_SCORE
    assert found["threads"] == "3"
    assert {"processor", "memory"} <= set(found["done"])
    assert ("disk" in found["done"]) == (found["disk"] == 3)
    assert found["again"] == found["done"]


def test_what_the_system_does_not_offer_is_not_claimed(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; "
        "from client.priority import lower_priority; "
        "print(','.join(lower_priority(oom_file=Path(sys.argv[2]))))"
    )
    root = str(Path(__file__).parents[2])

    def done(file: Path) -> list[str]:
        arguments = [sys.executable, "-c", script, root, str(file)]
        run = subprocess.run(arguments, capture_output=True, text=True, check=True)
        return run.stdout.strip().split(",")

    assert "memory" not in done(tmp_path / "absent")
    score = tmp_path / "score"
    score.write_text("1000\n", encoding="ascii")
    assert "memory" in done(score)
    assert score.read_text(encoding="ascii") == "1000\n"  # already more willing to go
    score.write_text("0\n", encoding="ascii")
    assert "memory" in done(score)
    assert score.read_text(encoding="ascii") == str(OOM_SCORE)
    score.write_text("what\n", encoding="ascii")
    assert "memory" not in done(score)


def test_one_core_is_left_to_the_owner() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert spare_threads() == max(1, (cores or 1) - 1)
