"""The pairs of jobs; `protos.convert` has them all."""

from __future__ import annotations

from .gen.secateur.v1 import inference_pb2
from .native import JobState, JobStatus, SubmittedJob

__all__ = ["job_status_from_proto", "job_status_to_proto", "submitted_job_from_proto", "submitted_job_to_proto"]

_JOB_STATES = {
    JobState.QUEUED: inference_pb2.JOB_STATE_QUEUED,
    JobState.RUNNING: inference_pb2.JOB_STATE_RUNNING,
    JobState.SUCCEEDED: inference_pb2.JOB_STATE_SUCCEEDED,
    JobState.FAILED: inference_pb2.JOB_STATE_FAILED,
    JobState.CANCELLED: inference_pb2.JOB_STATE_CANCELLED,
}
_JOB_STATES_BACK = {number: state for state, number in _JOB_STATES.items()}


def job_status_to_proto(status: JobStatus) -> inference_pb2.JobStatus:
    return inference_pb2.JobStatus(**{**vars(status), "state": _JOB_STATES[status.state]})


def job_status_from_proto(message: inference_pb2.JobStatus) -> JobStatus:
    """A state of a later version reads as running: something that is not over."""
    return JobStatus(
        state=_JOB_STATES_BACK.get(message.state, JobState.RUNNING),
        layer=message.layer,
        layers=message.layers,
        layer_name=message.layer_name,
        operations_done=message.operations_done,
        operations_planned=message.operations_planned,
        seconds_left=message.seconds_left if message.HasField("seconds_left") else None,
        reason=message.reason,
        message=message.message,
    )


def submitted_job_to_proto(job: SubmittedJob) -> inference_pb2.SubmitJobResponse:
    return inference_pb2.SubmitJobResponse(job_id=job.job_id, status=job_status_to_proto(job.status))


def submitted_job_from_proto(message: inference_pb2.SubmitJobResponse) -> SubmittedJob:
    return SubmittedJob(message.job_id, job_status_from_proto(message.status))
