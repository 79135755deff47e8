import sys

from minexp.cli import main

sys.exit(main())
