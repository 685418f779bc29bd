"""`python -m deployments` is `expandr deploy`."""

import sys

from flows.cli import app

app(["deploy", *sys.argv[1:]])
