"""One round of the joint loop in miniature; also a program, so that it can be killed.

python tests/flows/tiny_loop.py STORE SUMMARY.json
"""

import sys
from pathlib import Path

from expandr_core.options import JointLoopOptions
from flows.presets import resolve

OPTIONS = resolve("tiny", JointLoopOptions())


if __name__ == "__main__":
    from flows.joint_loop import joint_loop

    Path(sys.argv[2]).write_text(joint_loop(options=OPTIONS, store=sys.argv[1]).model_dump_json())
