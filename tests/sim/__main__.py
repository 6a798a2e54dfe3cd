"""Play many seeds: ``python -m tests.sim --help``."""

import sys

from tests.sim.simulation import main

if __name__ == "__main__":
    sys.exit(main())
