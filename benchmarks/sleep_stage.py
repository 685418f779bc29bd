"""A stage whose shards only sleep: all other time is the cost of handing them out (see fan_out.py)."""

import time
from pathlib import Path

from expandr_core.options.base import Options
from expandr_core.runtime.job import Job
from expandr_core.runtime.runner import run_shard

VERSION = 1
ROLE = "generate"
ISOLATION = "never"


class OPTIONS(Options):
    """How many shards, how long each takes, and a file that gets a line for each that is made."""

    shards: int
    seconds: float
    log: str = ""


def shards(job: Job) -> int:
    """Return the number of shards."""
    return job.options.shards


def run(job: Job) -> None:
    """Make each shard that is not there yet."""
    for number in range(job.options.shards):
        if job.takes(number):

            def write(out: Path, number: int = number) -> dict[str, float]:
                time.sleep(job.options.seconds)
                (out / "number").write_text(str(number))
                if job.options.log:
                    with Path(job.options.log).open("a") as log:
                        log.write(f"{number}\n")
                return {"shards": 1}

            run_shard(job, number, {"number": str(number)}, write)
        job.progress(number + 1, job.options.shards, "shards")
