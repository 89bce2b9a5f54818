"""`python -m opensiglip`, which `torchrun` and `accelerate launch` start on each rank."""

import sys

from opensiglip.apps.cli import main

if __name__ == "__main__":
    sys.exit(main())
