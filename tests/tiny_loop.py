"""One round of the joint loop in miniature; also a program, so that it can be killed.

python tests/tiny_loop.py STORE
"""

import sys

from expandr_core.options.loop import JointLoopOptions
from flows.presets import resolve

OPTIONS = resolve("tiny", JointLoopOptions(seed=1))


if __name__ == "__main__":
    from flows.joint_loop import joint_loop

    joint_loop(options=OPTIONS, store=sys.argv[1])
