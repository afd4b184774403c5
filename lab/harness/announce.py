# SPDX-License-Identifier: GPL-2.0-or-later
"""When a VM that has arrived was announced: after its guest had the backlog.

A packet socket at the destination's TAP gets the announcements, RARP by QEMU
and ARP by the guest (which needs no ARP else: its neighbour is fixed), with the
kernel's time.  What the guest has had by then QEMU's traces tell."""
import re
import socket
import struct
from datetime import datetime
from pathlib import Path

from . import LabError

TRACES = ('-msg', 'timestamp=on', '-trace', 'switchover_arrival_phase',
          '-trace', 'switchover_control_sent')
ETH_P_ALL, ARP, RARP = 3, 0x0806, 0x8035
SO_RCVBUFFORCE, SO_TIMESTAMPNS = 33, 35
RECEIVED = 4                    # SwitchoverMessageType: what the guest has had
LINE = re.compile(r'^(\S+)Z switchover_(\w+) (.*)$', re.M)


def microseconds(text):
    """Since the epoch; TEXT is as GLib writes a time, in UTC."""
    at = datetime.fromisoformat(f'{text}+00:00')
    return round(at.timestamp() * 1_000_000)


def is_announcement(frame, address, kinds=(ARP, RARP)):
    """Is FRAME, which a packet socket has read with ADDRESS, of these KINDS?"""
    # not what is sent to the guest, which the network may flood
    return address[2] != socket.PACKET_OUTGOING and \
        struct.unpack('!H', frame[12:14])[0] in kinds


class Capture:
    def __init__(self, system, host, log):
        """LOG: where QEMU's traces are"""
        self.log = log
        self.socket = system.socket(host, socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 25)
        self.socket.bind(('tap0', ETH_P_ALL))
        self.socket.setblocking(False)

    def announcements(self):
        """Their times, by the wall clock, in us."""
        times = []
        while True:
            try:
                frame, control, _, address = self.socket.recvmsg(2048,
                                                                 64)
            except BlockingIOError:
                return times
            if is_announcement(frame, address):
                seconds, ns = struct.unpack('qq', control[0][2][:16])
                times.append(seconds * 1_000_000 + ns // 1000)

    def check(self):
        """Returns (frames of the backlog, ms from when the guest had them to
        the first announcement); raises if that came before."""
        traces = [(microseconds(at), name, text) for at, name, text
                  in LINE.findall(Path(self.log).read_text())]
        backlog = max((int(re.search(r'received=(\d+)', text)[1])
                       for _, name, text in traces
                       if name == 'arrival_phase' and 'phase=backlog' in text),
                      default=None)
        had = [at for at, name, text in traces if name == 'control_sent' and
               f'type={RECEIVED} ' in text and
               int(text.split('value=')[1]) >= (backlog or 0)]
        announced = self.announcements()
        if backlog is None or not had or not announced:
            raise LabError(f'a backlog of {backlog} frames, {len(announced)} '
                           f'announcements: one of them is missing '
                           f'(see {self.log})')
        if announced[0] < had[0]:
            raise LabError(f'announced {had[0] - announced[0]} us before the '
                           f'guest had the {backlog} frames of the backlog')
        return backlog, (announced[0] - had[0]) / 1000
