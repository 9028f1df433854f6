"""Which image a name means, asked once when a service is made, so that all its tasks run the same (as with Docker).

The Docker Engine of this machine asks the registry; commands may be called where there is none, and images may be in no
registry at all: then each node finds out for itself, and the user is told.
"""

from __future__ import annotations

from msgspec.structs import replace

from control.model import ContainerSpec, RegistryAuth, ServiceSpec
from control.registry import is_pinned, split_reference

# A registry that does not answer by then would only be slow at each node, too.
TIMEOUT_S = 10


def pinned_service(spec: ServiceSpec, socket: str = "") -> tuple[ServiceSpec, str]:
    """The spec with its image by digest; or as it is, and why, if anybody should know."""
    container = spec.task.container
    if container is None or is_pinned(container.image) or container.pull == "never":
        return spec, ""
    digest, reason = _ask(container.image, container.registry_auth, socket)
    if not digest:
        return spec, reason and (
            f'image "{container.image}" is not pinned to a digest, so nodes may come to run different ones: {reason}'
        )
    pinned: ContainerSpec = replace(container, image=f"{container.image}@{digest}")
    return replace(spec, task=replace(spec.task, container=pinned)), ""


def _ask(image: str, auth: RegistryAuth | None, socket: str) -> tuple[str, str]:
    """(digest, why there is none). Both empty: it was made here and is in no registry."""
    import requests  # heavy, as is what follows
    from docker import APIClient
    from docker.errors import APIError, DockerException, ImageNotFound

    from mesh.executor.docker.engine import DEFAULT_SOCKET
    from mesh.executor.docker.plan import auth_config

    try:
        with APIClient(base_url=f"unix://{socket or DEFAULT_SOCKET}", version="auto", timeout=TIMEOUT_S) as client:
            try:
                here = client.inspect_image(image)  # type: ignore[no-untyped-call]
            except ImageNotFound:
                here = None
            if here is not None and not here.get("RepoDigests"):
                return "", ""
            repository, tag = split_reference(image)
            said = client.inspect_distribution(  # type: ignore[no-untyped-call]
                f"{repository}:{tag}", auth_config(auth)
            )
            return str(said["Descriptor"]["digest"]), ""
    except APIError as error:
        return "", f"its registry says: {error.explanation or error}"
    except (DockerException, requests.RequestException, OSError, KeyError) as error:
        return "", f"no Docker Engine here could ask its registry ({type(error).__name__})"
