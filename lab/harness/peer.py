# SPDX-License-Identifier: GPL-2.0-or-later
"""Control of one end of the stream, over UDP (guest/stream.c has the protocol).

The guest is asked over the same network as the test itself: that works on
either host, whichever of the two QEMU processes is left.  A question is asked
again until its answer comes, so a lost packet costs time, not the run.
"""
import itertools
import socket
import struct
import time

from . import LabError
from .count import Record
from .patience import Patience

# Seconds until a question is asked again; twice as long each time, as a slow
# guest answers all of them, and the next question waits behind these answers
AGAIN, AGAIN_AT_MOST = 0.2, 5
RECORD = struct.Struct('<QQI')  # struct record in guest/stream.c


class Peer:
    ids = itertools.count(1)    # both peers answer to one socket

    def __init__(self, name, sock, address, port, system):
        """@system: in which it runs"""
        self.name, self.socket = name, sock
        self.address, self.system = (address, port), system

    def ask(self, command, seconds=10):
        ident = str(next(self.ids)).encode()
        patience = Patience(seconds, self.system.progress)
        pause = AGAIN
        while not patience.over():
            try:
                self.socket.sendto(ident + b' ' + command.encode(),
                                   self.address)
                again = time.monotonic() + pause
                while (left := again - time.monotonic()) > 0:
                    self.socket.settimeout(left)
                    got, answer = self.socket.recv(65536).split(b' ', 1)
                    if got == ident:
                        if answer == b'error':
                            raise LabError(f'{self.name} does not understand '
                                           f'"{command}"')
                        return answer
            except socket.timeout:
                pause = min(2 * pause, AGAIN_AT_MOST)
            except ConnectionRefusedError:      # not listening yet
                pass
            self.system.check()
        raise LabError(f'{self.name}: no answer to "{command}": '
                       f'{patience}')

    def counters(self, command, seconds=10):
        """Ask for something that is answered with all counters."""
        pairs = (p.split('=') for p in self.ask(command, seconds)
                 .decode().split())
        return {name: int(value) for name, value in pairs}

    def records(self):
        """Everything this end has received, in the order of arrival."""
        records = []
        while True:
            data = self.ask(f'fetch {len(records)}')
            if not data:
                return records
            records += [Record(*f) for f in RECORD.iter_unpack(data)]
