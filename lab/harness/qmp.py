# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's monitor protocol: commands, and waits for events.

QEMU connects to a socket that we listen on, so there is no polling for a socket to
appear, and a QEMU that fails at its command line is noticed at once.

An event carries the time at which QEMU sent it, by the wall clock of this
machine.  It is kept on the monotonic clock, event['ns'], which is the time base
of the whole run; so it does not matter when we get around to reading it.
"""
import json
import os
import socket

from . import LabError
from .patience import Patience
from .system import accept, monotonic_minus_realtime


class QMP:
    """A listening socket first (pass .arguments to QEMU), then a monitor."""

    def __init__(self, directory, name):
        self.path = path = os.path.join(directory, f'qmp-{name}.sock')
        self.arguments = ['-chardev', f'socket,id=qmp,path={path}',
                          '-mon', 'chardev=qmp,mode=control']
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(1)
        self.socket = None
        self.events = []

    def connect(self, child):
        self.child = child
        self.socket = accept(self.listener, child, 20)
        self.listener.close()
        os.unlink(self.path)            # for the next QEMU of this name
        self.lines = b''
        self.clock = monotonic_minus_realtime()
        self.read(self.patience(20), 'greeting')
        self.execute('qmp_capabilities', enable=['oob'])

    def patience(self, seconds):
        return Patience(seconds, self.child.progress)

    def read(self, patience, what):
        """The next message; events are also put on the list.  WHAT is awaited,
        if that has to be said."""
        while b'\n' not in self.lines:
            if patience.over():
                raise LabError(f'{self.child.name}: no {what}: {patience} '
                               f'(see {self.child.log})')
            self.socket.settimeout(patience.interval)
            try:
                data = self.socket.recv(65536)
            except socket.timeout:
                continue
            if not data:
                self.child.wait(5)
                self.child.check()
            self.lines += data
        line, self.lines = self.lines.split(b'\n', 1)
        message = json.loads(line)
        if 'event' in message:
            t = message['timestamp']
            message['ns'] = (t['seconds'] * 1_000_000_000
                             + t['microseconds'] * 1000 + self.clock)
            self.events.append(message)
        return message

    def execute(self, command, oob=False, **arguments):
        """OOB: also if the main loop waits, as for memory in postcopy."""
        message = {'exec-oob' if oob else 'execute': command}
        if arguments:
            # QAPI names have dashes
            message['arguments'] = {k.replace('_', '-'): v
                                    for k, v in arguments.items()}
        self.socket.sendall(json.dumps(message).encode())
        patience = self.patience(20)
        while True:
            reply = self.read(patience, f'answer to {command}')
            if 'error' in reply:
                raise LabError(f'{self.child.name}: {command}: '
                               f'{reply["error"]["desc"]}')
            if 'return' in reply:
                return reply['return']

    def wait(self, name, seconds, **data):
        """The first event with this name, past or to come.  DATA: its fields
        that matter, and the value, or a tuple of values, of each."""
        def fits(event):
            got = event.get('data', {})
            return event['event'] == name and all(
                got.get(k) in (v if isinstance(v, tuple) else (v,))
                for k, v in data.items())

        patience = self.patience(seconds)
        looked = 0
        while True:
            for event in self.events[looked:]:
                looked += 1
                if fits(event):
                    return event
            self.read(patience, f'event {name} {data or ""} (came: '
                      f'{", ".join(e["event"] for e in self.events)})')
