"""The chart: a real API server takes what it renders, its pods need no more than they say, it keeps its authority."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents.node.main import options as agent_options
from controlplane.backends.kube.api import Forbidden, Invalid, Json, NotFound, Refused
from controlplane.cli.cluster_access import RULES
from controlplane.cli.kube import kube_options
from controlplane.settings import load
from dashboards.__main__ import parse as dashboard_options
from tests.kube.conftest import World, rules, until
from tests.kube.helm_chart import (
    ALL_OPTIONS,
    CHART,
    MONITORING,
    Helm,
    make_namespace,
    of_kind,
    papers,
    place,
    pod_spec,
)

VALUES: dict[str, tuple[str, ...]] = {"default": (), "all": ("-f", str(ALL_OPTIONS))}
PARTS = ("server", "dashboard", "agent")
DRY, DRY_JOBS = "chart-dry", "chart-dry-jobs"
IN_JOBS = ("--set", f"jobs.namespace={DRY_JOBS}")


@pytest.fixture(scope="session")
def dry(world: World, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Two namespaces, the monitoring kinds, and helm without a cluster."""
    for name in (DRY, DRY_JOBS):
        make_namespace(world.admin, name)
    for definition in yaml.safe_load_all(MONITORING.read_text()):
        world.admin.create(place(world.admin, definition), definition)
    until(lambda: len(monitoring_kinds(world)) == 2)
    return Helm(tmp_path_factory.mktemp("helm"), DRY)


def monitoring_kinds(world: World) -> list[str]:
    try:
        return [one["kind"] for one in world.admin.get("/apis/monitoring.coreos.com/v1")["resources"]]
    except NotFound:
        return []


@pytest.fixture(scope="session", params=sorted(VALUES))
def objects(request: pytest.FixtureRequest, dry: Helm) -> list[Json]:
    return dry.template(*VALUES[request.param], *IN_JOBS)


def test_a_real_api_server_takes_every_object(world: World, objects: list[Json]) -> None:
    refused = []
    for one in objects:
        try:
            world.admin.create(place(world.admin, one), one, dry_run=True)
        except Refused as error:
            refused.append(f"{one['kind']} {one['metadata']['name']}: {error.message}")
    assert refused == []
    kinds = {one["kind"] for one in objects}
    assert {"Deployment", "DaemonSet", "Secret", "Role", "ClusterRole", "ServiceAccount"} <= kinds


def test_options_are_off_until_they_are_asked_for(dry: Helm) -> None:
    default, everything = dry.template(*IN_JOBS), dry.template(*VALUES["all"], *IN_JOBS)
    optional = {"ServiceMonitor", "PrometheusRule", "NetworkPolicy"}
    assert not optional & {one["kind"] for one in default}
    assert optional <= {one["kind"] for one in everything}
    less = dry.template(*IN_JOBS, "--set", "agent.enabled=false,dashboard.enabled=false")
    assert [one["metadata"]["name"] for one in less if one["kind"] in ("Deployment", "DaemonSet")] == ["trimtab-server"]


def granted(objects: list[Json]) -> dict[str, object]:
    """Kind of rules -> the rules of its Role or ClusterRole, each of which is bound."""
    roles = {one["metadata"]["name"]: one for one in objects if one["kind"] in ("Role", "ClusterRole")}
    bound = {one["roleRef"]["name"] for one in objects if one["kind"] in ("RoleBinding", "ClusterRoleBinding")}
    assert bound == set(roles)
    wide = {name.rpartition("-")[2] for name, one in roles.items() if one["kind"] == "ClusterRole"}
    assert wide <= {"reader", "actuator"}, "the rest holds in the jobs' namespace only"
    return {name.rpartition("-")[2]: one["rules"] for name, one in roles.items()}


def test_the_rights_are_exactly_the_rule_files(dry: Helm) -> None:
    files = {path.name.removesuffix("-rules.yaml") for path in RULES.glob("*-rules.yaml")}
    assert granted(dry.template(*VALUES["all"], *IN_JOBS)) == {name: rules(name) for name in files}
    assert granted(dry.template(*IN_JOBS)) == {name: rules(name) for name in ("controller", "reader")}


# --- what the pods may do ---


@pytest.fixture(scope="session")
def levels(world: World) -> dict[str, str]:
    """A namespace for each Pod Security level, with the accounts that the chart's pods name."""
    found = {level: f"level-{level}" for level in ("restricted", "baseline", "privileged")}
    for level, name in found.items():
        make_namespace(world.admin, name, level)
        head = {"name": "trimtab-server", "namespace": name}
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": head}
        world.admin.create(f"/api/v1/namespaces/{name}/serviceaccounts", account)
        until(lambda name=name: default_account(world, name))
    return found


def default_account(world: World, namespace: str) -> bool:
    found = world.admin.get(f"/api/v1/namespaces/{namespace}/serviceaccounts")["items"]
    return any(one["metadata"]["name"] == "default" for one in found)


def admitted(world: World, namespace: str, spec: Json) -> str:
    """What admission says of a bare pod of this spec; empty when it takes it. Nothing is made."""
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one", "namespace": namespace}, "spec": spec}
    try:
        world.admin.create(f"/api/v1/namespaces/{namespace}/pods", body, dry_run=True)
    except (Forbidden, Invalid) as error:
        return error.message
    return ""


@pytest.mark.parametrize("part", ["server", "dashboard"])
def test_server_and_dashboard_pass_the_restricted_level(
    world: World, levels: dict[str, str], objects: list[Json], part: str
) -> None:
    spec = pod_spec(objects, part)
    assert admitted(world, levels["restricted"], spec) == ""
    loose = {**spec, "hostNetwork": True}
    assert "violates PodSecurity" in admitted(world, levels["restricted"], loose), "admission does judge"


OWN, READ = ["runtime", "spool"], ["rocm", "sys", "proc", "pods"]


@pytest.mark.parametrize(("source", "folders"), [("auto", [*OWN, *READ]), ("simulated", OWN)])
def test_the_agent_needs_folders_of_the_node_and_nothing_else(
    world: World, levels: dict[str, str], dry: Helm, source: str, folders: list[str]
) -> None:
    """Rings, heartbeats and GPUs are the node's own, which no level below privileged lets a pod see."""
    spec = pod_spec(dry.template(*IN_JOBS, "--set", f"agent.source={source}"), "agent")
    assert admitted(world, levels["privileged"], spec) == ""
    named = ", ".join(f'"{name}"' for name in folders)
    said = admitted(world, levels["baseline"], spec)
    assert said.endswith(f'violates PodSecurity "baseline:latest": hostPath volumes (volumes {named})'), said
    of_values = ("--set", f"agent.source={source}", "--set", "agent.prepareFolders=false")
    prepared = pod_spec(dry.template(*IN_JOBS, *of_values), "agent")
    said = admitted(world, levels["restricted"], prepared)
    words = f'restricted volume types (volumes {named} use restricted volume type "hostPath")'
    assert said.endswith(f'violates PodSecurity "restricted:latest": {words}'), said
    read_only = {one["name"] for one in spec["containers"][0]["volumeMounts"] if one.get("readOnly")}
    assert set(folders) - set(OWN) <= read_only


def test_an_agent_with_the_rights_of_root_has_one_capability_and_asks_for_what_it_reads(
    world: World, levels: dict[str, str], dry: Helm
) -> None:
    objects = dry.template(*IN_JOBS, "--set", "agent.rights=root")
    spec = pod_spec(objects, "agent")
    assert admitted(world, levels["privileged"], spec) == ""
    context = spec["containers"][0]["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"], "add": ["SYSLOG"]} and context["runAsUser"] == 0
    assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True
    daemon = next(one for one in objects if one["kind"] == "DaemonSet")
    asked = daemon["spec"]["template"]["metadata"]["annotations"]["cdi.k8s.io/trimtab"]
    cdi = yaml.safe_load((CHART.parent / "node" / "trimtab-cdi.yaml").read_text())
    assert asked.split(",") == [f"{cdi['kind']}={device['name']}" for device in cdi["devices"]]


def test_file_systems_that_must_have_room_are_mounted_to_look_at_only(
    world: World, levels: dict[str, str], dry: Helm
) -> None:
    spec = pod_spec(dry.template(*IN_JOBS, "--set", "agent.watchSpace={/mnt/checkpoints,/mnt/runs}"), "agent")
    assert admitted(world, levels["privileged"], spec) == ""
    container = spec["containers"][0]
    watched = [word for word in container["args"] if word.startswith("--watch-space")]
    assert watched == ["--watch-space=/mnt/checkpoints", "--watch-space=/mnt/runs"]
    mounts = {one["mountPath"]: one["readOnly"] for one in container["volumeMounts"] if one["name"].startswith("space")}
    assert mounts == {"/mnt/checkpoints": True, "/mnt/runs": True}
    held = [one["hostPath"]["path"] for one in spec["volumes"] if one["name"].startswith("space")]
    assert held == ["/mnt/checkpoints", "/mnt/runs"]


@pytest.mark.parametrize("part", PARTS)
def test_no_container_can_write_its_image_or_gain_rights(objects: list[Json], part: str) -> None:
    spec = pod_spec(objects, part)
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True and context["allowPrivilegeEscalation"] is False
        assert context["capabilities"]["drop"] == ["ALL"]
    assert spec["securityContext"]["runAsNonRoot"] is True and spec["enableServiceLinks"] is False
    assert spec["automountServiceAccountToken"] is (part == "server"), "only the server calls the API server"


# --- what the programs are told ---


def environment(spec: Json) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in spec["containers"][0]["env"]}


def mounted(spec: Json) -> dict[str, str]:
    """Folder in the container -> name of its volume."""
    return {one["mountPath"]: one["name"] for one in spec["containers"][0]["volumeMounts"]}


def test_the_server_is_told_what_the_values_say(dry: Helm) -> None:
    values: Json = yaml.safe_load(ALL_OPTIONS.read_text())
    spec = pod_spec(dry.template(*VALUES["all"], *IN_JOBS), "server")
    told = environment(spec)
    settings = load({}, {**told, "TRIMTAB_DATABASE": "postgresql://db/trimtab"})
    options = kube_options(settings)
    assert options is not None
    assert (options.namespace, options.queue, options.image) == (DRY_JOBS, "research", "")
    assert (options.volume_claim, options.volume_path) == (values["storage"]["claim"], values["storage"]["path"])
    assert options.runtime_path == values["agent"]["runtimePath"]
    assert settings.kube_ray is values["ray"]["enabled"] is True
    assert settings.kube_node_actuator and settings.log == "debug" and settings.kube_config == ""
    assert settings.public_url == values["server"]["url"] and not settings.dashboard
    assert mounted(spec)[options.volume_path] == "runs", "the server reads the checkpoints that trainers write"
    claim = next(one for one in spec["volumes"] if one["name"] == "runs")
    assert claim["persistentVolumeClaim"]["claimName"] == options.volume_claim
    database = next(one for one in spec["containers"][0]["env"] if one["name"] == "TRIMTAB_DATABASE")
    assert database["valueFrom"]["secretKeyRef"] == {"name": "pg", "key": "url"}


def test_every_listener_speaks_tls(objects: list[Json]) -> None:
    server, dashboard, agent = (pod_spec(objects, part) for part in PARTS)
    settings = load({}, environment(server))
    assert settings.scheme == "https" and Path(settings.tls_key).parent.as_posix() in mounted(server)
    board = dashboard_options(dashboard["containers"][0]["args"][3:])
    assert board.tls_cert and board.tls_key and board.api.startswith("https://") and board.ca_file
    reader = agent_options(agent["containers"][0]["args"][1:])
    assert reader.server.startswith("https://") and reader.ca_file and reader.metrics_cert and reader.metrics_key
    assert settings.host == board.host == reader.metrics_host, "and they listen beyond loopback"
    for spec in (server, dashboard, agent):
        container = spec["containers"][0]
        probes = [probe for name, probe in container.items() if name.endswith("Probe")]
        assert probes and {probe["httpGet"]["scheme"] for probe in probes} == {"HTTPS"}
        assert len(container["ports"]) == 1


def test_names_and_ports_meet(objects: list[Json]) -> None:
    server, dashboard, agent = (pod_spec(objects, part) for part in PARTS)
    assert environment(server)["TRIMTAB_PORT"] == str(server["containers"][0]["ports"][0]["containerPort"])
    board = dashboard_options(dashboard["containers"][0]["args"][3:])
    assert board.port == dashboard["containers"][0]["ports"][0]["containerPort"]
    reader = agent_options(agent["containers"][0]["args"][1:])
    assert reader.metrics_port == agent["containers"][0]["ports"][0]["containerPort"]
    assert {str(reader.runtime_dir), str(reader.spool_dir), "/tmp"} <= set(mounted(agent))
    assert str(reader.runtime_dir) == environment(server)["TRIMTAB_KUBE_RUNTIME_PATH"]
    assert reader.node == "$(NODE_NAME)" and reader.token_file.name == "$(NODE_NAME)"
    assert "localhost" in board.allow_host, "the probes' host"


# --- TLS ---


def handshake(folder: Path, secret: Json, name: str) -> None:
    """A strict client that trusts the secret's own authority calls the holder of its certificate by a name."""
    folder.mkdir(exist_ok=True)
    for file, content in papers(secret).items():
        (folder / file).write_bytes(content)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    client = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(back, there, server_hostname=name), server.wrap_bio(there, back, server_side=True)]
    for _ in range(8):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert ends[0].getpeercert()


def test_each_certificate_is_good_for_each_of_its_names(objects: list[Json], tmp_path: Path) -> None:
    settings = load({}, environment(pod_spec(objects, "server")))
    board = dashboard_options(pod_spec(objects, "dashboard")["containers"][0]["args"][3:])
    names = {
        "server": [
            "localhost",
            "127.0.0.1",
            "trimtab-server.chart-dry.svc",
            settings.public_url.split("/")[2].split(":")[0],
        ],
        "dashboard": ["127.0.0.1", *board.allow_host],
        "agent": [f"trimtab-agent.{DRY_JOBS}.svc"],
    }
    for part, expected in names.items():
        secret = of_kind(objects, "Secret", f"{part}-tls")
        for name in expected:
            handshake(tmp_path / part, secret, name)
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(tmp_path / part, secret, "elsewhere.example")
    keys = [papers(of_kind(objects, "Secret", f"{part}-tls"))["tls.key"] for part in PARTS]
    assert len(set(keys)) == 3
    holders = [one for one in objects if one["kind"] == "Secret" and one["metadata"]["namespace"] == DRY_JOBS]
    assert [one["metadata"]["name"] for one in holders] == ["trimtab-agent-tls"], (
        "the authority's key stays out of there"
    )


def test_secrets_that_are_there_already_are_not_made(dry: Helm) -> None:
    found = dry.template(*IN_JOBS, "--set", "tls.certificates=secrets")
    assert not [one for one in found if one["kind"] == "Secret"]
    assert (
        "no secret mine can be seen" in dry.run("template", "x", str(dry_chart()), "--set", "tls.caSecret=mine").stderr
    )


def dry_chart() -> Path:

    return CHART


# --- values that cannot be ---


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"images": {"server": "trimtab-server"}}, "/images/server"),
        ({"images": {"pullPolicy": "Sometimes"}}, "/images/pullPolicy"),
        ({"databse": {"secret": "x"}}, "databse"),
        ({"database": {"url": "postgresql://user:secret@db/x"}}, "url"),
        ({"storage": {"path": "relative"}}, "/storage/path"),
        ({"storage": {"claim": ""}}, "/storage/claim"),
        ({"jobs": {"namespace": "Jobs"}}, "/jobs/namespace"),
        ({"jobs": {"namespace": "trimtab"}}, "must not be the release's"),
        ({"server": {"url": "http://trimtab.example"}}, "/server/url"),
        ({"server": {"replicas": 2}}, "replicas"),
        ({"agent": {"source": "guess"}}, "/agent/source"),
        ({"agent": {"runtimePath": "/run/$(whoami)"}}, "/agent/runtimePath"),
        ({"nodeActuator": {"enabled": "yes"}}, "/nodeActuator/enabled"),
        ({"tls": {"certificates": "none"}}, "/tls/certificates"),
        ({"tls": {"days": 0}}, "/tls/days"),
        ({"listenOn": "10.0.0.1"}, "/listenOn"),
        ({"serviceMonitor": {"interval": "often"}}, "/serviceMonitor/interval"),
        ({"networkPolicy": {"people": [{"podSelecter": {}}]}}, "podSelecter"),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    assert said in Helm(tmp_path).refused(values)
