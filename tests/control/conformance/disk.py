import os

from control.store.disk import RealDisk


class FaultyDisk(RealDisk):
    code = 0

    def write(self, handle, data, offset):
        if self.code:
            raise OSError(self.code, os.strerror(self.code))
        super().write(handle, data, offset)
