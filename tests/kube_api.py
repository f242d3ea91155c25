"""A stand-in for a Kubernetes API server with KubeRay's RayJob, for a real kubectl: objects, rights and logs.

It is not Kubernetes: nothing is scheduled, and no operator acts. Tests write the status that KubeRay documents.
"""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

RESOURCES = {
    "v1": {"configmaps": "ConfigMap", "pods": "Pod"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "ray.io/v1": {"rayjobs": "RayJob", "rayclusters": "RayCluster"},
    "authorization.k8s.io/v1": {"selfsubjectaccessreviews": "SelfSubjectAccessReview"},
}
PATH = re.compile(
    r"/(?:api|apis)/(?P<version>v1|[a-z0-9.]+/v1)/namespaces/(?P<namespace>[^/]+)/(?P<kind>[a-z]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<part>log))?"
)


class KubeApi:
    """What the server holds, and what it was asked."""

    def __init__(self):
        self.objects = {}  # (kind, name) -> object
        self.logs = {}  # pod -> lines
        self.asked = []  # (method, path)
        self.forbidden = set()  # (verb, resource)
        self.refuse = None  # message for every apply
        self.wrong = lambda content: None  # what is wrong with an object
        self.has_ray = True
        self.namespaces = {"work"}
        self.lingering = set()  # kinds that a delete does not end

        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def answer(self, code, body):
                data = json.dumps(body).encode() if not isinstance(body, bytes) else body
                self.send_response(code)
                self.send_header("Content-Type", "text/plain" if isinstance(body, bytes) else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def serve(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                url = urlsplit(self.path)
                api.asked.append((self.command, unquote(self.path)))
                self.answer(*api.answer(self.command, url.path, parse_qs(url.query), body))

            do_GET = do_POST = do_PATCH = do_DELETE = serve

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def config(self):
        """A kubeconfig whose current context is this server."""
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "clusters": [{"name": "here", "cluster": {"server": self.url}}],
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
                "users": [{"name": "me", "user": {"token": "t"}}],
            }
        )

    def groups(self):
        return {version: kinds for version, kinds in RESOURCES.items() if self.has_ray or version != "ray.io/v1"}

    def answer(self, method, path, query, body):
        if path == "/version":
            return 200, {"major": "1", "minor": "32", "gitVersion": "v1.32.0"}
        if path == "/api":
            return 200, {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            names = [version for version in self.groups() if "/" in version]
            versions = [{"groupVersion": name, "version": "v1"} for name in names]
            groups = [
                {"name": name.partition("/")[0], "versions": [version], "preferredVersion": version}
                for name, version in zip(names, versions, strict=True)
            ]
            return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        found = re.fullmatch(r"/(?:api|apis)/(.+)", path)
        if found and found[1] in self.groups():
            return 200, self.resource_list(found[1])
        if path.startswith("/openapi/v3"):
            return self.openapi(path)
        if path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            return 201, self.review(body)
        found = PATH.fullmatch(path)
        if found and found["version"] in self.groups() and found["kind"] in self.groups()[found["version"]]:
            return self.on_objects(method, found, query, body)
        return self.status(404, "NotFound", "the server could not find the requested resource")

    def resource_list(self, version):
        verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": version,
            "resources": [
                {
                    "name": name,
                    "singularName": kind.lower(),
                    "kind": kind,
                    "namespaced": kind != "SelfSubjectAccessReview",
                    "verbs": verbs,
                }
                for name, kind in self.groups()[version].items()
            ],
        }

    def openapi(self, path):
        """Tell kubectl that the server checks fields itself."""
        if path == "/openapi/v3":
            paths = {
                f"{'api' if version == 'v1' else 'apis'}/{version}": {"serverRelativeURL": f"/openapi/v3/{version}"}
                for version in self.groups()
            }
            return 200, {"paths": paths}
        version = path.removeprefix("/openapi/v3/")
        group, _, number = version.rpartition("/")
        operations = {
            f"/{version}/{name}": {
                "patch": {
                    "parameters": [{"name": "fieldValidation", "in": "query"}, {"name": "dryRun", "in": "query"}],
                    "x-kubernetes-group-version-kind": {"group": group, "version": number, "kind": kind},
                }
            }
            for name, kind in RESOURCES[version].items()
        }
        return 200, {"openapi": "3.0.0", "info": {"title": "-", "version": "-"}, "paths": operations}

    def review(self, body):
        """Answer `kubectl auth can-i`, which asks in protobuf: fields 2, 5 and 6 are verb, resource, subresource."""

        def says(number, text):
            return bytes([number << 3 | 2, len(text)]) + text.encode() in body

        denied = any(
            says(2, verb) and all(says(number, part) for number, part in zip((5, 6), what.split("/"), strict=False))
            for verb, what in self.forbidden
        )
        return {
            "kind": "SelfSubjectAccessReview",
            "apiVersion": "authorization.k8s.io/v1",
            "metadata": {},
            "spec": {},
            "status": {"allowed": not denied},
        }

    @staticmethod
    def status(code, reason, message):
        return code, {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Success" if code == 200 else "Failure",
            "reason": reason,
            "message": message,
            "code": code,
        }

    def on_objects(self, method, found, query, body):
        kind, name = found["kind"], found["name"]
        if found["namespace"] not in self.namespaces:
            return self.status(404, "NotFound", f'namespaces "{found["namespace"]}" not found')
        if found["part"] == "log":
            lines = self.logs.get(name, [])
            return 200, "".join(f"{line}\n" for line in self.since(lines, query)).encode()
        if method == "PATCH":
            if self.refuse is not None:
                return self.status(403, "Forbidden", self.refuse)
            content = yaml.safe_load(body)
            wrong = self.wrong(content)
            if wrong:
                return self.status(422, "Invalid", f"{content['kind']} {name} is invalid: {wrong}")
            content["metadata"].setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
            if query.get("dryRun") != ["All"]:
                self.objects[kind, name] = content
            return 200, content
        if name is None:
            wanted = dict(part.split("=") for part in query.get("labelSelector", [""])[0].split(",") if part)
            only = dict(part.split("=") for part in query.get("fieldSelector", [""])[0].split(",") if part)
            items = [
                item
                for (other, _), item in self.objects.items()
                if other == kind
                and wanted.items() <= item["metadata"].get("labels", {}).items()
                and only.get("metadata.name", item["metadata"]["name"]) == item["metadata"]["name"]
            ]
            return 200, {
                "kind": f"{RESOURCES[found['version']][kind]}List",
                "apiVersion": found["version"],
                "metadata": {"resourceVersion": "1"},
                "items": items,
            }
        if (kind, name) not in self.objects:
            return self.status(404, "NotFound", f'{kind} "{name}" not found')
        if method == "DELETE":
            if kind not in self.lingering:
                del self.objects[kind, name]
            return self.status(200, "", "")
        return 200, self.objects[kind, name]

    @staticmethod
    def since(lines, query):
        """Lines begin with their time; the server compares whole seconds."""
        start = query.get("sinceTime", [""])[0][:19]
        kept = [line for line in lines if line[:19] >= start]
        if "tailLines" in query:
            kept = kept[-int(query["tailLines"][0]) :]
        return kept if query.get("timestamps") == ["true"] else [line.partition(" ")[2] for line in kept]
