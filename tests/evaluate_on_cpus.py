"""contextseg-evaluate that reads every raster by windows, also a small one."""

import sys

from contextseg.processing.data import streamed_pairs
from contextseg.scripts.evaluate import main

if __name__ == "__main__":
    streamed_pairs.WHOLE_PIXELS = 0
    sys.exit(main(sys.argv[1:]))
