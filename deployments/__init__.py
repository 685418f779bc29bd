"""What the Prefect server of a cluster has of ours: work pools, deployments, schedules, automations.

    plan.py          everything that there is to be
    connection.py    the server, or a clear complaint
    pools.py         work pools; pausing and draining them
    forms.py         the forms of deployments in the UI
    apply.py         deployments and their schedules
    automations.py   what becomes of dead and stuck runs, and who is told
    deploy.py        all of it: `expandr deploy`

One rule for deploying again: what the code says follows the code, and what people set in the UI stays:
pauses, a pool's limit and job template, a deployment's parameters and job variables, when a schedule
runs and with what, and everything that is not ours. `--reset` takes the templates, parameters and
schedules back to the code's.
"""
