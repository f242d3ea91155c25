"""The driver as a job of a Ray cluster, reached through a tunnel, with the cluster's token."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from ablate.errors import InputError
from ablate.launch.backend import DriverState
from ablate.words import one_line

_PHASES = {"PENDING": "waiting", "RUNNING": "running", "STOPPED": "ended", "SUCCEEDED": "ended", "FAILED": "ended"}


class SilentError(Exception):
    """The cluster's job server does not answer as it should; the message says how."""


class RayJobs:
    """The job server at a port of this machine; it is the dashboard of a head node, behind a tunnel."""

    def __init__(self, port: int, token: str) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._headers = {"Authorization": f"Bearer {token}"}

    def submit(self, job: str, entrypoint: str) -> None:
        """Start a job on the head node."""
        client = self._client()
        try:
            client.submit_job(entrypoint=entrypoint, submission_id=job)
        except RuntimeError as error:
            raise SilentError(one_line(error, 300)) from error

    def state(self, job: str) -> DriverState:
        """Return how a job is."""
        try:
            info = self._get(f"/api/jobs/{job}")
        except SilentError as error:
            return DriverState("unknown", str(error))
        phase = _PHASES.get(info.get("status", ""), "unknown")
        words = one_line(info.get("message") or "", 300)
        code = info.get("driver_exit_code")
        if phase == "ended" and code is None:
            code = {"SUCCEEDED": 0, "STOPPED": 143}.get(info["status"])
        if code is not None and code < 0:  # a signal, as Python counts
            code = 128 - code
        return DriverState(phase, words, code)  # type: ignore[arg-type]

    def logs(self, job: str) -> str:
        """Return all that a job printed so far."""
        return str(self._get(f"/api/jobs/{job}/logs").get("logs") or "")

    def stop(self, job: str) -> None:
        """Send SIGTERM to a job."""
        self._call(f"/api/jobs/{job}/stop", method="POST")

    def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes that are alive: address, whether it is the head, resources."""
        answer = self._get("/api/v0/nodes?detail=1&limit=1000")
        rows = answer.get("data", {}).get("result", {}).get("result", [])
        return [
            {
                "address": row["node_ip"],
                "is_head": bool(row.get("is_head_node")),
                "resources": {k: v for k, v in row.get("resources_total", {}).items() if k in ("CPU", "GPU")},
            }
            for row in rows
            if row.get("state") == "ALIVE"
        ]

    def _client(self) -> Any:
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise InputError('ablate launch needs the client of Ray: pip install "ablate[clusters]"') from error
        try:
            return JobSubmissionClient(self._url, headers=self._headers)
        except (ConnectionError, RuntimeError) as error:
            raise SilentError(one_line(error, 300)) from error

    def _get(self, path: str) -> dict[str, Any]:
        return self._call(path, method="GET")

    def _call(self, path: str, *, method: str) -> dict[str, Any]:
        request = urllib.request.Request(self._url + path, method=method, headers=self._headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return dict(json.loads(answer.read()))
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")
            raise SilentError(f"HTTP {error.code}: {one_line(said, 300)}") from error
        except (OSError, ValueError) as error:
            raise SilentError(one_line(error, 300)) from error
