"""One observable, cached, retryable step each; Prefect lives here and in `flows/`.

Every step is `Pipeline.step`, a Prefect task around one stage program of `expandr_core`.
"""
