"""The lines of a batch's output and error files, as OpenAI's Batch API words them.

An answer, in the output file::

    {"id": "batch_req_…", "custom_id": "…", "response": {"status_code": 200, "request_id": "job_…", "body": {…}},
     "error": null}

An error, in the error file. ``response`` is what the same request would have got over HTTP; it is null
where there was no request to answer (the line can't be read as one) or none was made (the batch expired or
was cancelled first)::

    {"id": "batch_req_…", "custom_id": "…" or null,
     "response": {"status_code": 404, "request_id": "job_…", "body": {"error": {…}}} or null,
     "error": {"code": "…", "message": "…", "param": "…" or null, "line": 7}}

``line`` counts from 1 and counts blank lines, as editors do.
"""

from __future__ import annotations

import orjson

from fabric.contracts.errors import ErrorInfo


def output_line(custom_id: str | None, job_id: str, body: bytes) -> bytes:
    """``body``: the whole OpenAI answer, as JSON. No line end."""
    head = orjson.dumps({"id": _request_id(job_id), "custom_id": custom_id})
    answered = b',"response":{"status_code":200,"request_id":"%b","body":' % job_id.encode()
    return b"".join((head[:-1], answered, body, b'},"error":null}'))


def error_line(custom_id: str | None, job_id: str, line_no: int, error: ErrorInfo, *, answered: bool) -> bytes:
    """``answered``: whether there was a request that got this error as its answer. No line end."""
    response = {"status_code": error.status, "request_id": job_id, "body": error.body()} if answered else None
    return orjson.dumps(
        {
            "id": _request_id(job_id),
            "custom_id": custom_id,
            "response": response,
            "error": {"code": error.code, "message": error.message, "param": error.param, "line": line_no},
        }
    )


def _request_id(job_id: str) -> str:
    return "batch_req_" + job_id.removeprefix("job_")
