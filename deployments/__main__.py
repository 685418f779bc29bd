"""`python -m deployments` is `expandr deploy`."""

import sys

from expandr_cli.main import app

if __name__ == "__main__":
    app(["deploy", *sys.argv[1:]])
