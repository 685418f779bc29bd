"""`python -m deployments` is `expandr deploy`."""

import sys

from flows.cli import app

if __name__ == "__main__":
    app(["deploy", *sys.argv[1:]])
