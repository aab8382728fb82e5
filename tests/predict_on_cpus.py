"""contextseg-predict whose last process has bad luck with its second image: DIE (it is killed) or WAIT (it hangs)."""

import os
import signal
import sys
import time
from pathlib import Path

from contextseg.processing.class_prediction import ClassPredictor
from contextseg.scripts.predict import main

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
predict, seen = ClassPredictor.predict, []


def unlucky(self, job, loaded):
    seen.append(job)
    if len(seen) == 2:
        Path(os.environ["REACHED"] + str(RANK)).touch()
    if RANK == WORLD - 1 and len(seen) == 2:
        if "DIE" in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    return predict(self, job, loaded)


if __name__ == "__main__":
    ClassPredictor.predict = unlucky
    sys.exit(main(sys.argv[1:]))
