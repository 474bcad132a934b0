"""Engine processes end with the process that they work for, also where that one was killed and could not tell them.

vLLM's processes outlive a parent that was killed: they would keep their GPU, and the run that goes on would find none. vLLM
loads the plugins of installed packages in every process of its own; this is one (``pyproject.toml``).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

#: Set for the processes of an engine by the worker that starts it.
WATCH = "PIPELINE_WATCH_PARENT"


def watch_parent() -> None:
    """End this process when its parent has ended, where :data:`WATCH` asks for that. Does nothing in a parent itself."""
    parent = multiprocessing.parent_process()
    if parent is None or WATCH not in os.environ:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)  # mercy is for those who can be asked; nobody waits for this one

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
