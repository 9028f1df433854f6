"""Names of images, and what is said to their registries: who may pull. Pure.

Credentials are part of a container's spec in the store and at the nodes that run its tasks, and nowhere else: whoever
asks for a service or a task sees the registry's name alone (`concealed`). A spec that comes back like that means the
credentials that are there already (`kept`).
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from control.model import ContainerSpec, RegistryAuth, Service, ServiceSpec, Task, TaskSpec

# What an image without a registry is pulled from, in the words of Docker's tools.
DEFAULT_REGISTRY = "docker.io"
# A token of a registry is some kilobytes.
VALUE_MAX = 16 << 10


def registry_of(image: str) -> str:
    """The registry in an image's name: its first part, if that can be no part of a path."""
    first, slash, _ = image.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else DEFAULT_REGISTRY


def split_reference(reference: str) -> tuple[str, str]:
    """(repository, tag or digest) of an image's name as a user writes it; the tag is "latest" if none is written."""
    name, at, digest = reference.partition("@")
    if at:
        return name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name, digest
    head, colon, tag = reference.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (reference, "latest")


def is_pinned(reference: str) -> bool:
    """Whether the name says exactly which image is meant."""
    return "@" in reference


def auth_mistakes(container: ContainerSpec) -> Iterator[str]:
    """What is wrong with the credentials, one sentence each."""
    auth = container.registry_auth
    if auth is None:
        return
    if auth.registry != registry_of(container.image):
        yield f'credentials for registry "{auth.registry[:255]}" are of no use to image "{container.image[:255]}"'
    for value in (auth.username, auth.password, auth.identity_token):
        if len(value) > VALUE_MAX or "\0" in value:
            yield f"credentials for a registry are at most {VALUE_MAX} characters each, and text"


def is_concealed(auth: RegistryAuth) -> bool:
    """Whether it says nothing."""
    return not (auth.username or auth.password or auth.identity_token)


def concealed(obj: Service | Task) -> Service | Task:
    """As others may see it."""
    if isinstance(obj, Task):
        return replace(obj, spec=_concealed(obj.spec)) if _has_auth(obj.spec) else obj
    before = obj.previous_spec
    if _has_auth(obj.spec.task):
        obj = replace(obj, spec=replace(obj.spec, task=_concealed(obj.spec.task)))
    if before is not None and _has_auth(before.task):
        obj = replace(obj, previous_spec=replace(before, task=_concealed(before.task)))
    return obj


def kept(spec: ServiceSpec, before: ServiceSpec | None) -> ServiceSpec:
    """A spec as it is to be written: credentials that were concealed are those of `before`, if of the same registry.

    What is for another registry than the image's now is dropped, since nobody has given it for that.
    """
    container = spec.task.container
    auth = container.registry_auth if container is not None else None
    if container is None or auth is None or not is_concealed(auth):
        return spec
    known = before.task.container.registry_auth if before is not None and before.task.container is not None else None
    if known is None or known.registry != registry_of(container.image):
        known = None
    return replace(spec, task=replace(spec.task, container=replace(container, registry_auth=known)))


def without_auth(spec: TaskSpec) -> TaskSpec:
    """What is run: other credentials alone are no reason to run it anew."""
    return _with(spec, None) if _has_auth(spec) else spec


def _has_auth(spec: TaskSpec) -> bool:
    return spec.container is not None and spec.container.registry_auth is not None


def _concealed(spec: TaskSpec) -> TaskSpec:
    assert spec.container is not None
    assert spec.container.registry_auth is not None
    return _with(spec, RegistryAuth(registry=spec.container.registry_auth.registry))


def _with(spec: TaskSpec, auth: RegistryAuth | None) -> TaskSpec:
    assert spec.container is not None
    return replace(spec, container=replace(spec.container, registry_auth=auth))
