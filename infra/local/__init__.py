"""A whole cluster on one machine without containers: `python -m infra.local up`.

PostgreSQL, Redis, an S3 server (OpenStack Swift), Prefect's API and its background services behind
nginx, and workers, each with a home and a scratch folder of its own; supervisord restarts what dies.

    cluster.py       where things are: folders, ports, secrets, the environment of clients
    programs.py      what runs, with which command and environment, and its configuration files
    lifecycle.py     up, down with drain, status
    conditional.py   conditional writes for Swift's S3 interface
    demo.py          the joint loop, started through the UI (browser.py) and compared with a local run
    *.template       nginx.conf, redis.conf, and Swift's configuration
"""
