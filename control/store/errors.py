"""Why a commit did not happen, or may not have.

Every message is one sentence that names the user's thing; it can be shown as it is. `OutcomeUnknown` is the only one
after which the change may still take place: whoever gets it re-reads before trying again.
"""

from __future__ import annotations


class StoreError(Exception):
    """Base of everything the store refuses. Unless a subclass says otherwise, nothing was changed."""


class VersionConflict(StoreError):
    """The object was changed, removed or created meanwhile: read it again and decide again."""


class NameConflict(StoreError):
    """A network or service of that name exists, or there is a cluster already."""


class NumberConflict(StoreError):
    """A node number or VXLAN network id that the data plane needs to be unique is taken."""


class AddressConflict(StoreError):
    """An address has a holder on that network already, or is at rest."""


class PortConflict(StoreError):
    """A published port belongs to another service."""


class ForbiddenTransition(StoreError):
    """The writer may not move a task that way (`control.lifecycle`)."""


class TooLarge(StoreError):
    """More than one log entry may hold: split it (`Store.batch`), or make the object smaller."""


class Unreadable(StoreError):
    """The object has a field of the wrong type: it could be written, but never read again."""


class Refused(StoreError):
    """The backend certainly did not write it (disk full, an earlier commit in the pipeline failed): try again."""


class NotLeader(StoreError):
    """This manager does not lead, or no longer in the term the writer started in. Nothing was written."""


class OutcomeUnknown(StoreError):
    """The commit was under way when contact or leadership was lost: it may or may not come to pass."""


class StoreClosed(StoreError):
    """The store was closed, or failed for good; a commit under way then may or may not be found at the next start."""


class BackendFailed(StoreError):
    """The backend cannot go on (failed sync, damaged log): the process must end. Outcome of open commits: unknown."""


class StateInUse(BackendFailed):
    """Another meshd has the state directory open."""


class WrongCluster(BackendFailed):
    """The state directory belongs to another cluster."""


class Damaged(BackendFailed):
    """What is on disk is not what was written, and not what a crash leaves behind."""


class Removed(BackendFailed):
    """This manager was removed from the cluster: nobody listens to it any more. Its store is of no further use."""


class ChangeRefused(Refused):
    """The managers cannot be changed in that way, or not now."""
