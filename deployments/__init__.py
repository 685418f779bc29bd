"""What `expandr deploy` sets up on a cluster's Prefect server.

    plan.py          the deployments and their schedules
    connection.py    the server, or a clear error
    pools.py         work pools; pausing and draining them
    forms.py         the forms of deployments in the UI
    apply.py         creates and updates deployments and schedules
    automations.py   ends dead and stuck runs, and reports failures
    deploy.py        all of it: `expandr deploy`

Deploying again updates what the code defines and keeps what people set in the UI: pauses, limits and
job templates of pools, parameters and job variables of deployments, timing and parameters of schedules,
and everything that is not ours. `--reset` restores templates, parameters and schedules from the code.
"""
