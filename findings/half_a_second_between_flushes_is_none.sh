#!/usr/bin/env bash
# Guess: Prefect's server writes task runs down twice a second with a flush interval of 0.5, once with 1.
# Seen (prefect 3.8.8): the setting PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL is a float and takes 0.5,
# but the recorder starts with its whole part, 0. It then looks at its empty queue without a pause: a server that does
# nothing keeps a core busy. With 1 it rests. So batches of task runs can be flushed once a second at most, and 1.5
# means 1.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check prefect==3.8.8
export PREFECT_HOME="$folder/home" PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1
cat > "$folder/program.py" <<'PYTHON'
import asyncio
import time

from prefect.server.services.task_run_recorder import TaskRunRecorder
from prefect.settings import get_current_settings

SECONDS = 5


async def idle() -> float:
    """Let the recorder wait for events that never come; return its share of a core."""
    recorder = TaskRunRecorder()
    running = asyncio.create_task(recorder.start())
    await recorder.started_event.wait()
    started, used = time.perf_counter(), time.process_time()
    await asyncio.sleep(SECONDS)
    share = (time.process_time() - used) / (time.perf_counter() - started)
    await recorder.stop()
    await running
    return share


interval = get_current_settings().server.services.task_run_recorder.flush_interval
print(interval, asyncio.run(idle()))
PYTHON
for interval in 0.5 1; do
    PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE=100 \
        PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL=$interval \
        "$folder/venv/bin/python" "$folder/program.py" 2>/dev/null >> "$folder/seen"
done
"$folder/venv/bin/python" - "$folder/seen" <<'PYTHON'
import sys
from pathlib import Path

(half, busy), (one, resting) = (map(float, line.split()) for line in Path(sys.argv[1]).read_text().splitlines())
print(f"flush interval {half}: {busy:.0%} of a core while nothing happens; {one}: {resting:.0%}")
assert (half, one) == (0.5, 1.0) and busy > 5 * resting, "the behaviour has changed"
PYTHON
