"""Credentials for registries: part of specs, shown to nobody, and kept over an update that does not name them."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from control.container import container_mistakes
from control.dispatcher.assignments import assignments, build
from control.lifecycle import TaskState
from control.model import (
    Cluster,
    ClusterSpec,
    ContainerSpec,
    Meta,
    Node,
    NodeSpec,
    NodeStatus,
    RegistryAuth,
    ReplicatedMode,
    Service,
    ServiceMode,
    ServiceSpec,
    Task,
    TaskSpec,
    TaskStatus,
)
from control.registry import VALUE_MAX, concealed, is_pinned, kept, registry_of, split_reference, without_auth
from control.server import services
from control.server.objects import to_wire
from control.store.tables import Snapshot
from control.store.txn import Put

AUTH = RegistryAuth(registry="here:5000", username="ann", password="sesame-123")


def spec(image: str = "here:5000/box", auth: RegistryAuth | None = AUTH) -> ServiceSpec:
    mode = ServiceMode(replicated=ReplicatedMode(replicas=1))
    return ServiceSpec(name="api", mode=mode, task=TaskSpec(container=ContainerSpec(image=image, registry_auth=auth)))


def task() -> Task:
    status = TaskStatus(state=TaskState.RUNNING)
    return Task(id="t", service_id="s", service_name="api", slot=1, spec=spec().task, status=status)


def auth_of(found: ServiceSpec) -> RegistryAuth | None:
    assert found.task.container is not None
    return found.task.container.registry_auth


@pytest.mark.parametrize(
    ("image", "registry"),
    [
        ("busybox", "docker.io"),
        ("library/busybox:1", "docker.io"),
        ("here:5000/box", "here:5000"),
        ("registry.example/a/b@sha256:00", "registry.example"),
        ("localhost/box", "localhost"),
        ("box:5000", "docker.io"),
        ("", "docker.io"),
    ],
)
def test_the_registry_in_an_image_s_name(image: str, registry: str) -> None:
    assert registry_of(image) == registry


def test_nobody_who_asks_sees_them() -> None:
    service = Service(id="s", meta=Meta(version=1), spec=spec(), previous_spec=spec())
    for obj in (service, task()):
        assert b"sesame" not in to_wire(obj).value
        assert b"ann" not in to_wire(obj).value
        assert b"here:5000" in to_wire(obj).value
        assert concealed(concealed(obj)) == concealed(obj)
        assert b"sesame" in msgspec.msgpack.encode(obj), "nodes and the store have them"
    assert "sesame" not in repr(service), "and no log"


def test_objects_without_them_are_shown_as_they_are() -> None:
    service = Service(id="s", spec=spec(auth=None))
    assert concealed(service) is service


def test_an_update_of_what_was_seen_keeps_them() -> None:
    seen = concealed(Service(id="s", spec=spec())).spec
    assert isinstance(seen, ServiceSpec)
    assert auth_of(kept(seen, spec())) == AUTH
    assert auth_of(kept(seen, spec(auth=None))) is None
    assert auth_of(kept(seen, None)) is None, "nothing is made of nothing"


def test_another_registry_is_not_given_them() -> None:
    seen = concealed(Service(id="s", spec=spec())).spec
    elsewhere = replace(seen, task=spec("evil.example/box", auth_of(seen)).task)  # type: ignore[arg-type]
    assert auth_of(kept(elsewhere, spec())) is None  # type: ignore[arg-type]
    (mistake,) = container_mistakes(ContainerSpec(image="evil.example/box", registry_auth=AUTH))
    assert mistake == 'credentials for registry "here:5000" are of no use to image "evil.example/box"'


def test_too_long_ones_are_refused() -> None:
    long = replace(AUTH, identity_token="x" * (VALUE_MAX + 1))
    (mistake,) = container_mistakes(ContainerSpec(image="here:5000/box", registry_auth=long))
    assert "at most" in mistake
    assert "xxx" not in mistake


def test_services_keep_and_change_them() -> None:
    empty = Snapshot.of((), 0)
    (put,) = services.create_service(empty, spec(), "s1").changes
    assert isinstance(put, Put)
    service = put.obj
    assert isinstance(service, Service)
    view = Snapshot.of((replace(service, meta=Meta(version=1)),), 1)
    seen = concealed(service).spec
    assert services.update_service(view, service, seen) == []  # type: ignore[arg-type]
    (changed,) = services.update_service(view, service, spec(auth=replace(AUTH, password="other")))
    assert isinstance(changed, Put)
    assert isinstance(changed.obj, Service)
    assert auth_of(changed.obj.spec) == replace(AUTH, password="other")


def test_other_credentials_run_nothing_else() -> None:
    assert without_auth(spec().task) == without_auth(spec(auth=replace(AUTH, password="other")).task)
    assert without_auth(spec().task) != without_auth(spec("here:5000/other").task)


def test_only_nodes_with_its_tasks_are_told() -> None:
    objects = (
        Cluster(id="c", spec=ClusterSpec()),
        *(Node(id=f"n{n}", number=n, spec=NodeSpec(), status=NodeStatus(state="ready")) for n in (1, 2)),
        Service(id="s", spec=spec()),
        replace(task(), node_id="n1"),
    )
    tables = build(Snapshot.of([replace(o, meta=Meta(version=1)) for o in objects], 1))
    told = {node: repr(msgspec.json.encode(list(assignments(tables, node).values()))) for node in ("n1", "n2")}
    assert "sesame" in told["n1"]
    assert "sesame" not in told["n2"]


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("nginx", ("nginx", "latest")),
        ("nginx:1.27", ("nginx", "1.27")),
        ("10.0.0.1:5000/a/b", ("10.0.0.1:5000/a/b", "latest")),
        ("10.0.0.1:5000/a/b:2", ("10.0.0.1:5000/a/b", "2")),
        ("a/b@sha256:00", ("a/b", "sha256:00")),
        ("a/b:2@sha256:00", ("a/b", "sha256:00")),
        ("10.0.0.1:5000/b@sha256:00", ("10.0.0.1:5000/b", "sha256:00")),
    ],
)
def test_references_of_images(reference: str, parts: tuple[str, str]) -> None:
    assert split_reference(reference) == parts
    assert is_pinned(reference) == ("@" in reference)
