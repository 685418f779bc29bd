"""A whole cluster on one machine without containers: `python -m infra.local up`.

It runs PostgreSQL, Redis, an S3 server (OpenStack Swift), Prefect's API and background services behind
nginx, and workers with separate homes and scratch folders; supervisord restarts whatever dies.

    cluster.py       where things are: folders, ports, secrets, the environment of clients
    programs.py      every program's command, environment and configuration files
    lifecycle.py     up, down with drain, status
    conditional.py   adds conditional writes to Swift's S3 interface
    demo.py          the joint loop, started through the UI (browser.py) and compared with a local run
    *.template       nginx.conf, redis.conf, and Swift's configuration
"""
