"""Spot notices: read from servers on loopback that answer as each cloud does, and turned into drained nodes."""

import json
import os
import socket
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from runs import descendants, wait_until

from ablate.running import spot
from ablate.running.spot import CLOUDS, Aws, Azure, Gcp, cloud_of_this_machine

NAMES = [cloud.name for cloud in CLOUDS]
TIME = datetime(2031, 9, 18, 8, 22, tzinfo=UTC)
INSTANCE_ACTION = "/latest/meta-data/spot/instance-action"
PREEMPTED = "/computeMetadata/v1/instance/preempted"
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
MACHINE_NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"


class Service:
    """A cloud's metadata service on loopback; `pages` holds what it answers now, `asked` what it was asked."""

    def __init__(self, cloud):
        self.cloud, self.asked, self.tokens = cloud, [], []
        self.pages = {
            "aws": {"/latest/meta-data/events/recommendations/rebalance": '{"noticeTime": "2031-09-18T08:00:00Z"}'},
            "gcp": {PREEMPTED: "FALSE"},
            "azure": {EVENTS: json.dumps({"DocumentIncarnation": 1, "Events": []}), MACHINE_NAME: "worker_3"},
        }[cloud]
        self.status = None  # answers every request with this status, if set
        service = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                service.asked.append(f"{self.command} {self.path}")
                status, text = service.answer(self.command, self.path, self.headers)
                self.send_response(service.status or status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_PUT = answer

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def environment(self):
        """What moves the cloud's metadata service here."""
        return {
            "aws": {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"{self.address}/", "AWS_EC2_METADATA_DISABLED": "false"},
            "gcp": {"GCE_METADATA_HOST": f"127.0.0.1:{self.port}"},
            "azure": {"AZURE_POD_IDENTITY_AUTHORITY_HOST": self.address},
        }[self.cloud]

    def answer(self, method, path, headers):
        if self.cloud == "aws" and (method, path) == ("PUT", "/latest/api/token"):
            if not 1 <= int(headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21600:
                return 400, ""
            self.tokens.append(f"token-{len(self.tokens)}")
            return 200, self.tokens[-1]
        allowed = {
            "aws": headers.get("X-aws-ec2-metadata-token") in self.tokens[-1:],
            "gcp": headers.get("Metadata-Flavor") == "Google",
            "azure": headers.get("Metadata") == "true",
        }[self.cloud]
        if not allowed or method != "GET":
            return {"aws": 401, "gcp": 403, "azure": 400}[self.cloud], ""
        return (200, self.pages[path]) if path in self.pages else (404, "")

    def announce(self, deadline=TIME):
        """Begin to take the machine back."""
        if self.cloud == "aws":
            time_text = deadline.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            self.pages[INSTANCE_ACTION] = json.dumps({"action": "terminate", "time": time_text})
        elif self.cloud == "gcp":
            self.pages[PREEMPTED] = "TRUE\n"
        else:
            self.schedule(event(not_before=deadline.astimezone(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")))

    def schedule(self, *events):
        self.pages[EVENTS] = json.dumps({"DocumentIncarnation": 2, "Events": events})

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def event(kind="Preempt", machines=("worker_3",), not_before="Thu, 18 Sep 2031 08:22:00 GMT"):
    """Return a scheduled event as in Azure's documentation."""
    return {
        "EventId": "602d9444-d2cd-49c7-8624-8643e7171297",
        "EventStatus": "Scheduled" if not_before else "Started",
        "EventType": kind,
        "ResourceType": "VirtualMachine",
        "Resources": list(machines),
        "NotBefore": not_before,
        "Description": "Virtual machine is being preempted",
        "EventSource": "Platform",
        "DurationInSeconds": -1,
    }


@pytest.fixture
def service(request):
    """The metadata service of the cloud that the test names."""
    made = Service(request.param)
    yield made
    made.close()


def on(*clouds):
    return pytest.mark.parametrize("service", clouds, indirect=True)


def cloud_at(service):
    return cloud_of_this_machine(environment=service.environment)


# --- reading ----------------------------------------------------------------------------------------


@on(*NAMES)
def test_no_notice_then_a_notice_with_its_deadline(service):
    cloud = cloud_at(service)
    assert (cloud.name, cloud.look(), cloud.look()) == (service.cloud, None, None)
    service.announce()
    begin = datetime.now(UTC)
    notice = cloud.look()
    assert notice.cloud == service.cloud
    assert notice.action == {"aws": "terminate", "gcp": "preempt", "azure": "preempt"}[service.cloud]
    if service.cloud == "gcp":  # says nothing about the time: 30 seconds from now
        assert timedelta(seconds=30) <= notice.deadline - begin < timedelta(seconds=32)
    else:
        assert notice.deadline == TIME


@on("aws")
@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_aws_says_what_it_does_to_the_machine(service, action):
    service.pages[INSTANCE_ACTION] = json.dumps({"action": action, "time": "2031-09-18T08:22:00Z"})
    assert cloud_at(service).look() == spot.Notice("aws", action, TIME)


@on("aws")
@pytest.mark.parametrize("text", ["2031-09-18T10:22:00+02:00", "2031-09-18T08:22:00", "2031-09-18T08:22:00.000Z"])
def test_aws_times_have_a_zone_and_are_in_utc_without_one(service, text):
    service.pages[INSTANCE_ACTION] = json.dumps({"action": "stop", "time": text})
    deadline = cloud_at(service).look().deadline
    assert (deadline, deadline.utcoffset()) == (TIME, timedelta(0))


@on("aws")
def test_aws_asks_for_one_token_and_for_another_when_it_has_expired(service):
    cloud = cloud_at(service)
    assert [cloud.look() for _ in range(3)] == [None] * 3
    assert len(service.tokens) == 1
    service.tokens.append("somebody else's")
    service.announce()
    assert cloud.look().deadline == TIME
    assert service.asked.count("PUT /latest/api/token") == 2
    assert {path for path in service.asked if path.startswith("GET")} == {f"GET {INSTANCE_ACTION}"}


@on("azure")
@pytest.mark.parametrize(
    ("text", "deadline"),
    [
        ("Thu, 18 Sep 2031 08:22:00 GMT", TIME),
        ("Thu, 18 Sep 2031 10:22:00 +0200", TIME),
        ("Thu, 18 Sep 2031 08:22:00 -0000", TIME),
    ],
)
def test_azure_times_have_a_zone(service, text, deadline):
    service.schedule(event(not_before=text))
    found = cloud_at(service).look().deadline
    assert (found, found.utcoffset()) == (deadline, timedelta(0))


@on("azure")
def test_azure_an_event_that_has_started_ends_the_machine_now(service):
    service.schedule(event(not_before=""))
    assert abs(cloud_at(service).look().deadline - datetime.now(UTC)) < timedelta(seconds=2)


@on("azure")
def test_azure_only_the_end_of_this_machine_is_a_notice(service):
    cloud = cloud_at(service)
    service.schedule(event("Reboot"), event("Freeze"), event("Redeploy"), event(machines=["worker_1", "worker_33"]))
    assert cloud.look() is None
    service.schedule(
        event(machines=["worker_1", "WORKER_3"], not_before="Thu, 18 Sep 2031 09:00:00 GMT"), event("Terminate")
    )
    assert cloud.look() == spot.Notice("azure", "terminate", TIME)  # the earlier of two
    cloud.look()
    assert service.asked.count(f"GET {MACHINE_NAME}") == 1


MALFORMED = {
    "aws": ["", "<html>", "[]", "null", '{"action": "stop"}', '{"action": "stop", "time": "soon"}'],
    "gcp": ["", "<html>", "MAYBE"],
    "azure": ["", "<html>", "[]", '{"Events": 1}', '{"Events": [{}]}', json.dumps({"Events": [event(not_before="x")]})],
}


@pytest.mark.parametrize(
    ("service", "text"), [(cloud, text) for cloud in NAMES for text in MALFORMED[cloud]], indirect=["service"]
)
def test_a_malformed_answer_is_no_notice_and_told_once(service, text, caplog):
    cloud = cloud_at(service)
    page = {"aws": INSTANCE_ACTION, "gcp": PREEMPTED, "azure": EVENTS}[service.cloud]
    service.pages[page] = text
    assert [cloud.look(), cloud.look()] == [None, None]
    (line,) = caplog.messages
    assert service.address in line
    service.announce()
    assert cloud.look() is not None


@on(*NAMES)
@pytest.mark.parametrize("status", [302, 403, 429, 503])
def test_a_service_that_fails_is_asked_again(service, status, caplog):
    cloud = cloud_at(service)
    service.announce()
    service.status = status
    assert [cloud.look(), cloud.look()] == [None, None]
    (line,) = caplog.messages
    assert f"HTTP status {status}" in line
    service.status = None
    assert cloud.look() is not None


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_service_that_does_not_answer_is_told_once(cloud, monkeypatch, caplog):
    monkeypatch.setattr(spot, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        mute = cloud(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert [mute.look(), mute.look()] == [None, None]
        gone = cloud(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert [gone.look(), gone.look()] == [None, None]
    assert [line.count("cannot be read") for line in caplog.messages] == [1, 1]


@pytest.mark.parametrize("address", ["https://127.0.0.1:1", "file:///etc/hostname", "http://[nonsense", "http://"])
def test_an_address_that_cannot_be_asked_is_told(address, caplog):
    cloud = cloud_of_this_machine(environment={"AWS_EC2_METADATA_SERVICE_ENDPOINT": address})
    assert cloud.look() is None
    assert len(caplog.messages) == 1


@on(*NAMES)
def test_the_proxies_of_the_environment_are_not_used(service, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    service.announce()
    assert cloud_at(service).look() is not None


# --- which cloud ------------------------------------------------------------------------------------


def firmware(folder, **facts):
    for name, text in facts.items():
        (folder / name).write_text(f"{text}\n")
    return folder


@pytest.mark.parametrize(
    ("facts", "cloud", "address"),
    [
        ({"sys_vendor": "Amazon EC2", "product_name": "g6e.2xlarge"}, Aws, "http://169.254.169.254"),
        ({"sys_vendor": "Xen", "bios_version": "4.11.amazon"}, Aws, "http://169.254.169.254"),
        ({"sys_vendor": "Google", "product_name": "Google Compute Engine"}, Gcp, "http://metadata.google.internal"),
        (
            {"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77"},
            Azure,
            "http://169.254.169.254",
        ),
        ({"sys_vendor": "Microsoft Corporation", "product_name": "Virtual Machine"}, None, None),  # Hyper-V at home
        ({"sys_vendor": "LENOVO", "product_name": "20XW"}, None, None),
        ({}, None, None),
    ],
)
def test_the_firmware_tells_the_cloud(tmp_path, facts, cloud, address):
    found = cloud_of_this_machine(firmware(tmp_path, **facts), {})
    assert type(found) is (cloud or type(None))
    assert getattr(found, "_endpoint", None) == address


def test_no_firmware_no_cloud(tmp_path):
    assert cloud_of_this_machine(tmp_path / "nowhere", {}) is None


def test_a_variable_wins_over_the_firmware_and_aws_can_be_switched_off(tmp_path):
    dmi = firmware(tmp_path, sys_vendor="Amazon EC2")
    assert isinstance(cloud_of_this_machine(dmi, {"GCE_METADATA_HOST": "127.0.0.1:1"}), Gcp)
    assert isinstance(cloud_of_this_machine(dmi, {"GCE_METADATA_HOST": ""}), Aws)
    off = {"AWS_EC2_METADATA_DISABLED": "True", "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:1"}
    assert cloud_of_this_machine(dmi, off) is None
    assert isinstance(cloud_of_this_machine(dmi, {"AWS_EC2_METADATA_DISABLED": "false"}), Aws)


# --- on a cluster -----------------------------------------------------------------------------------


@contextmanager
def watching():
    """Watch the connected cluster; yield the notices that would stop the run, and what was told."""
    from ablate.running.ray_tune import spot_watch

    own, told = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spot_watch, "POLL_S", 0.2)
        with spot_watch.SpotWatch(own.append, told.append, nodes_s=0.5):
            yield own, told


@pytest.fixture
def in_no_cloud(monkeypatch):
    for cloud in CLOUDS:
        monkeypatch.delenv(cloud.variable, raising=False)


@pytest.mark.skipif(sys.platform != "linux", reason="starts Ray")
def test_alone_on_one_machine_its_notice_stops_the_run_once(in_no_cloud, monkeypatch):
    import ray

    from ablate.running.ray_tune import connected

    service = Service("aws")
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    try:
        with connected(None):
            with watching() as (own, _):
                wait_until(lambda: len(service.asked) >= 3, 20)
                assert own == []
                service.announce()
                wait_until(lambda: own, 20)
                time.sleep(0.5)
                assert own == [spot.Notice("aws", "terminate", TIME)]
            assert ray._private.state.state.get_draining_nodes() == {}
    finally:
        service.close()


class Machines:
    """A cluster on this machine: a head in Azure, a node in each cloud, one in AWS that stays, one in no cloud."""

    def __init__(self):
        import ray
        from ray.cluster_utils import Cluster

        self.services = {name: Service(name) for name in NAMES}
        self.services |= {"head": Service("azure"), "stays": Service("aws")}
        head = {"num_cpus": 0, "include_dashboard": False, "env_vars": self.services["head"].environment}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.ids = {}
        for name in [*NAMES, "stays"]:
            self.ids[name] = self.cluster.add_node(num_cpus=1, env_vars=self.services[name].environment).node_id
        self.ids["nowhere"] = self.cluster.add_node(num_cpus=1).node_id
        ray.init(address=self.cluster.address, log_to_driver=False, configure_logging=False)
        self.work = [self.employ(name) for name in [*NAMES, "nowhere"]]

    def employ(self, name):
        """Give the named node work without end."""
        return self.start(lambda: time.sleep(600), name)

    def start(self, function, name):
        """Start a function on the CPU of the named node; return the reference to its result."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(self.ids[name], soft=False)
        return ray.remote(num_cpus=1, max_retries=0, scheduling_strategy=there)(function).remote()

    def draining(self):
        import ray

        names = {node: name for name, node in self.ids.items()}
        return {names[node]: time_ms for node, time_ms in ray._private.state.state.get_draining_nodes().items()}

    def num_watches(self):
        return sum(command.startswith("ray::wait_for_notice") for command in descendants(os.getpid()).values())

    def idle_s(self, name):
        """Return for how long a node has been idle in the eyes of the autoscaler."""
        import ray
        from ray.autoscaler.v2.sdk import get_cluster_resource_state

        state = get_cluster_resource_state(ray._private.worker.global_worker.gcs_client)
        (found,) = [node for node in state.node_states if node.node_id.hex() == self.ids[name]]
        return found.idle_duration_ms / 1000

    def shutdown(self):
        import ray

        ray.shutdown()
        self.cluster.shutdown()
        for service in self.services.values():
            service.close()


@pytest.fixture(scope="module")
def machines():
    if sys.platform != "linux":
        pytest.skip("nodes on one machine are for Linux")
    with pytest.MonkeyPatch.context() as patch:
        for cloud in CLOUDS:
            patch.delenv(cloud.variable, raising=False)
        made = Machines()
        try:
            yield made
        finally:
            made.shutdown()


@pytest.fixture(scope="module")
def watched(machines):
    """One watch over the cluster, as a run would keep it: the notices that would stop the run, and what was told."""
    with watching() as found:
        yield found


def test_a_node_without_work_is_not_watched_and_stays_idle(machines, watched):
    import ray

    own, told = watched
    wait_until(lambda: all(machines.services[name].asked for name in NAMES), 60)
    assert machines.services["stays"].asked == []
    wait_until(lambda: machines.idle_s("stays") > 3, 10)
    assert machines.services["stays"].asked == []
    assert [machines.idle_s(name) for name in NAMES] == [0, 0, 0]
    wait_until(lambda: machines.num_watches() == len(NAMES), 20)  # the node that is in no cloud has none any more
    work = machines.employ("stays")
    wait_until(lambda: machines.services["stays"].asked, 60)
    ray.cancel(work, force=True)
    wait_until(lambda: machines.idle_s("stays") > 2, 60)
    assert (own, told, machines.draining()) == ([], [], {})


@pytest.mark.parametrize("cloud", NAMES)
def test_a_node_that_its_cloud_takes_back_is_drained_with_the_deadline(machines, watched, cloud):
    own, told = watched
    service, before, number = machines.services[cloud], machines.draining(), len(told)
    wait_until(lambda: service.asked, 60)
    assert cloud not in before
    deadline = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=90)
    service.announce(deadline)
    if cloud == "gcp":
        deadline = datetime.now(UTC) + timedelta(seconds=30)
    wait_until(lambda: len(told) > number, 20)
    after = machines.draining()
    assert after.keys() == before.keys() | {cloud}
    assert 0 <= after[cloud] - int(deadline.timestamp() * 1000) < (6000 if cloud == "gcp" else 1)
    asked = len(service.asked)
    time.sleep(2.5)
    assert (own, len(told), len(service.asked)) == ([], number + 1, asked)  # once is enough
    assert cloud in told[-1]


def test_the_drivers_own_notice_stops_the_run_and_drains_nothing(machines, monkeypatch):
    before, service = machines.draining(), Service("gcp")
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    service.announce()
    with watching() as (own, _):
        wait_until(lambda: own, 20)
    service.close()
    assert [(notice.cloud, notice.action) for notice in own] == [("gcp", "preempt")]
    assert machines.draining() == before


def test_the_notice_of_a_head_elsewhere_stops_the_run(machines):
    import ray

    def watch():
        """Watch from a driver that is not on the head."""
        from ablate.running.ray_tune.spot_watch import SpotWatch

        own, end = [], time.monotonic() + 60
        with SpotWatch(own.append, print, nodes_s=0.5):
            while not own and time.monotonic() < end:
                time.sleep(0.1)
        return own

    before = machines.draining()
    machines.services["head"].announce()
    assert ray.get(machines.start(watch, "stays"), timeout=90) == [spot.Notice("azure", "preempt", TIME)]
    assert machines.draining() == before


def test_what_goes_wrong_in_the_watch_is_told_once_and_reaches_nobody(machines, monkeypatch):
    import ray

    def broken():
        raise RuntimeError("no nodes today")

    monkeypatch.setattr(ray, "nodes", broken)
    with watching() as (own, told):
        time.sleep(1.5)
    assert told == ["warning: spot notices may be missed: no nodes today"]
    assert own == []
