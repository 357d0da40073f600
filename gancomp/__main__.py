"""``python -m gancomp``: the command line without its script on the path."""

import sys

from gancomp.cli import main

sys.exit(main())
