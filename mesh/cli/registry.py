"""What the user has logged in to a registry with ("docker login"), for `--with-registry-auth`.

Docker's own code finds it: in config.json of $DOCKER_CONFIG or ~/.docker, or with a credential helper named there.
"""

from __future__ import annotations

from control.model import RegistryAuth
from control.registry import DEFAULT_REGISTRY, registry_of
from mesh.cli.text import TextError


def auth_for(image: str) -> RegistryAuth:
    """The credentials for the registry of an image. Raises TextError."""
    from docker import auth  # heavy, and next to no command needs it
    from docker.errors import DockerException

    registry = registry_of(image)
    try:
        found = auth.load_config().resolve_authconfig(None if registry == DEFAULT_REGISTRY else registry) or {}
    except (DockerException, OSError, ValueError) as error:
        raise TextError(f'cannot read the credentials for registry "{registry}": {error}') from error
    said = {str(key).lower(): str(value or "") for key, value in found.items()}
    made = RegistryAuth(
        registry=registry,
        username=said.get("username", ""),
        password=said.get("password", ""),
        identity_token=said.get("identitytoken", ""),
    )
    if not made.identity_token and not made.username:
        raise TextError(f'there are no credentials for registry "{registry}": docker login {registry}')
    return made
