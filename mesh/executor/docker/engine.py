"""The one door to Docker's SDK: calls on the engine of this machine, in a bounded pool of threads.

An engine that is away for a moment (it is restarted, or boots after us) is waited for; then each call fails with one
sentence. Every call is made with the version of the API that the engine speaks, from 1.40 (Docker 19.03) on.
Threads: `THREADS` for short calls, `PULLS` for pulls, each with a client of its own; no process that ends waits for
them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import requests
from docker import APIClient
from docker.errors import APIError, DockerException

from control.model import RegistryAuth
from control.registry import split_reference
from mesh.executor.docker.plan import (
    OWNER_LABEL,
    Image,
    State,
    auth_config,
    read_image,
    read_state,
)
from mesh.executor.docker.pool import Pool
from mesh.executor.protocol import ExecutorError

log = logging.getLogger(__name__)

DEFAULT_SOCKET = "/var/run/docker.sock"
API_MIN = (1, 40)
# An engine works on as many starts at once as there are cores or so; more calls only wait inside it.
THREADS = 4
PULLS = 2
# The engine answers a call in a fraction of this, but for 60 containers at once on two busy cores.
CALL_TIMEOUT_S = 60.0
# An engine that is restarted is back sooner; one that is not will not be waited for by every task in turn.
AWAY_MAX_S = 10.0
AWAY_POLL_S = 0.25
# A question whether an engine is there, at start.
ASK_TIMEOUT_S = 3.0
PROGRESS_PERIOD_S = 5.0
FOLLOW_TIMEOUT_S = 7 * 86400  # a container that prints nothing is no engine that is away
ERROR_MAX = 300  # characters of the engine's own words that a user is shown

T = TypeVar("T")


def local_socket(environment: Mapping[str, str]) -> str:
    """Where the engine of this machine listens: DOCKER_HOST, if that is a UNIX socket. Others have other namespaces."""
    kind, _, path = environment.get("DOCKER_HOST", "").partition("://")
    return path if kind == "unix" and path else DEFAULT_SOCKET


class EngineAway(ExecutorError):
    """No engine answers. One sentence for the user."""


class EngineRefused(ExecutorError):
    """The engine does not do it. `status` is HTTP's; 409 is a clash."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


class Engine:
    """The engine behind one socket. Methods with `await` raise EngineAway and EngineRefused."""

    def __init__(self, socket: str = DEFAULT_SOCKET, away_max_s: float = AWAY_MAX_S) -> None:
        self.socket = socket
        self._away_max_s = away_max_s
        self._clients = threading.local()
        self._calls = Pool(THREADS, "docker")
        self._pulls = Pool(PULLS, "docker-pull")

    def ask(self) -> str:
        """ "" when an engine answers that we can use, else why not. Blocking."""
        try:
            client = APIClient(base_url=f"unix://{self.socket}", version="1.24", timeout=int(ASK_TIMEOUT_S))
            with client:
                return _too_old(str(client.version(api_version=False).get("ApiVersion", "0.0")))
        except (DockerException, requests.RequestException, OSError, ValueError) as error:
            return f"no Docker Engine answers at {self.socket}: {_reason(error)}"

    def logs(self, container: str, *, tail: int | None, follow: bool) -> Iterator[bytes]:
        """What a container has printed, as pieces; with `follow` until it ends. Blocking; raises ExecutorError."""
        try:
            with APIClient(base_url=f"unix://{self.socket}", version="auto", timeout=FOLLOW_TIMEOUT_S) as client:
                lines: int | Literal["all"] = "all" if tail is None else tail
                yield from client.logs(container, stdout=True, stderr=True, stream=True, follow=follow, tail=lines)
        except APIError as error:
            raise EngineRefused(f"the Docker Engine cannot show the log: {_reason(error)}", 0) from error
        except (DockerException, requests.RequestException, OSError) as error:
            raise EngineAway(f"no Docker Engine answers at {self.socket}: {_reason(error)}") from error

    async def image(self, reference: str) -> Image | None:
        """An image that the engine has."""

        def look(client: APIClient) -> Image:
            return read_image(client.inspect_image(reference))  # type: ignore[no-untyped-call]

        return await self._found(look, "look for an image")

    async def pull(self, reference: str, auth: RegistryAuth | None = None) -> None:
        """Get an image from its registry, as whom `auth` says; what comes is logged now and then.

        Without it, as whom this machine's root has logged in, if it has ("docker login").
        """
        repository, tag = split_reference(reference)
        said = auth_config(auth)

        def fetch(client: APIClient) -> None:
            _follow(reference, client.pull(repository, tag=tag, stream=True, decode=True, auth_config=said))

        await self._run(self._pulls, fetch, f'pull image "{reference}"')

    async def create(self, name: str, body: dict[str, Any]) -> str:
        """A new container; its id."""

        def make(client: APIClient) -> str:
            return str(client.create_container_from_config(body, name)["Id"])  # type: ignore[no-untyped-call]

        return await self._do(make, "create its container")

    async def start(self, container: str) -> None:
        """Start a container; one that runs already is no error."""
        await self._do(lambda client: client.start(container), "start its container")

    async def state(self, container: str) -> State | None:
        """A container by name or id; None when there is none."""
        return await self._found(lambda client: read_state(client.inspect_container(container)), "look at a container")

    async def remove(self, container: str) -> None:
        """Kill and remove a container, and the volumes that only it has; one that is gone already is no error."""
        await self._found(lambda client: client.remove_container(container, v=True, force=True), "remove a container")

    async def owned(self, owner: str) -> list[tuple[str, str, dict[str, str]]]:
        """(id, name, labels) of all containers of one daemon, whatever they do."""
        found = await self._do(
            lambda client: client.containers(all=True, filters={"label": f"{OWNER_LABEL}={owner}"}), "list containers"
        )
        return [(str(c["Id"]), str((c.get("Names") or [""])[0]).lstrip("/"), c.get("Labels") or {}) for c in found]

    # --- containers and networks of others --------------------------------------------------------------------------

    def events(self, opened: Callable[[], None]) -> Iterator[dict[str, Any]]:
        """What happens to containers and networks. `opened` is called when none is missed any more. Blocking."""
        try:
            with APIClient(base_url=f"unix://{self.socket}", version="auto", timeout=FOLLOW_TIMEOUT_S) as client:
                stream = client.events(filters={"type": ["container", "network"]}, decode=True)
                opened()
                yield from stream
        except (DockerException, requests.RequestException, OSError, ValueError) as error:
            raise EngineAway(f"no Docker Engine answers at {self.socket}: {_reason(error)}") from error

    async def running(self) -> list[dict[str, Any]]:
        """All containers that run, as `GET /containers/json` has them."""
        return list(await self._do(lambda client: client.containers(), "list containers"))

    async def container(self, reference: str) -> dict[str, Any] | None:
        """A container as `GET /containers/{id}/json` has it."""
        return await self._found(lambda client: dict(client.inspect_container(reference)), "look at a container")

    async def networks(self) -> list[dict[str, Any]]:
        """All networks of the engine, as `GET /networks` has them."""
        return list(await self._do(lambda client: client.networks(), "list networks"))

    async def create_network(self, name: str, body: dict[str, Any]) -> None:
        """A new network; `body` as of `POST /networks/create`."""

        def make(client: APIClient) -> None:
            client.create_network(name, check_duplicate=True, **body)

        await self._do(make, f'create network "{name}"')

    async def remove_network(self, network: str) -> None:
        """Remove a network; one that is gone already is no error."""
        await self._found(lambda client: client.remove_network(network), "remove a network")

    # --- calls ------------------------------------------------------------------------------------------------------

    async def _found(self, call: Callable[[APIClient], T], what: str) -> T | None:
        try:
            return await self._do(call, what)
        except EngineRefused as refused:
            if refused.status == 404:
                return None
            raise

    async def _do(self, call: Callable[[APIClient], T], what: str) -> T:
        return await self._run(self._calls, call, what)

    async def _run(self, pool: Pool, call: Callable[[APIClient], T], what: str) -> T:
        return await pool.run(lambda: self._patiently(call, what))

    def _patiently(self, call: Callable[[APIClient], T], what: str) -> T:
        """Make a call; again for a while if nobody answers."""
        deadline = time.monotonic() + self._away_max_s
        while True:
            try:
                return call(self._client())
            except APIError as error:
                status = error.response.status_code if error.response is not None else 0
                raise EngineRefused(f"the Docker Engine cannot {what}: {_reason(error)}", status) from error
            except requests.Timeout as error:
                raise EngineAway(f"the Docker Engine does not answer: cannot {what}") from error
            except (DockerException, requests.RequestException, OSError) as error:
                self._clients.client = None
                if time.monotonic() > deadline:
                    raise EngineAway(
                        f"no Docker Engine answers at {self.socket}: cannot {what}: {_reason(error)}"
                    ) from error
                time.sleep(AWAY_POLL_S)

    def _client(self) -> APIClient:
        """This thread's client."""
        client: APIClient | None = getattr(self._clients, "client", None)
        if client is None:
            # An engine that starts takes connections and answers when its containers are there; if those are on our
            # networks it asks this daemon for them first, which must not be waiting for it then.
            patience_s = max(1, round(self._away_max_s))
            client = APIClient(base_url=f"unix://{self.socket}", version="auto", timeout=patience_s)
            client.timeout = int(CALL_TIMEOUT_S)
            if too_old := _too_old(client.api_version):
                raise EngineRefused(too_old, 400)
            self._clients.client = client
        return client


def _too_old(version: str) -> str:
    """ "" if an engine with this version of the API will do."""
    numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
    if numbers >= API_MIN:
        return ""
    needed = ".".join(map(str, API_MIN))
    return f"the Docker Engine is too old: its API is {version}, and meshd needs {needed} (Docker 19.03) or later"


def _follow(reference: str, progress: Iterator[dict[str, Any]]) -> None:
    """Read a pull to its end. Raises APIError when the engine says that it failed."""
    said_s = time.monotonic()
    layers: dict[str, str] = {}
    for line in progress:
        if "error" in line:
            raise APIError(str(line["error"]))
        if "id" in line:
            layers[str(line["id"])] = str(line.get("status", ""))
        if time.monotonic() - said_s > PROGRESS_PERIOD_S:
            said_s = time.monotonic()
            done = sum(status in ("Pull complete", "Already exists") for status in layers.values())
            log.info("pulling an image", extra={"image": reference, "layers": len(layers), "done": done})


def _reason(error: BaseException) -> str:
    """The engine's words, or the system's, short."""
    if isinstance(error, APIError) and error.explanation:
        return str(error.explanation)[:ERROR_MAX]
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        found = [a for a in (*inner.args, getattr(inner, "reason", None)) if isinstance(a, BaseException)]
        nested = [a for arg in inner.args if isinstance(arg, tuple) for a in arg if isinstance(a, BaseException)]
        inner = next(iter((*found, *nested)), inner.__cause__)
    return str(error)[:ERROR_MAX]
