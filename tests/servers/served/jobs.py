"""The application as a Celery worker has it: one job is one request."""

import os

import app
import celery

jobs = celery.Celery("jobs", broker=os.environ["JOBS_BROKER"], backend=os.environ["JOBS_RESULTS"])
jobs.conf.worker_hijack_root_logger = False
jobs.conf.broker_connection_retry_on_startup = True


@jobs.task
def answer():
    return app.answer().decode()
