# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS: certificates, also for libvirt; for the connection of the two filters
QEMU's arguments, and a look at what is on the wire.

An authority of our own signs one certificate for who listens, on either host,
and one for who connects; each QEMU verifies the other.
"""
import re
import time
from pathlib import Path

from . import LabError, products
from .patience import Patience
from .system import LINK_ADDRESS

STREAM = b'LABD'                # begins each packet of guest/stream.c
LEAST = 8000                    # bytes of a capture; half are the handshake
ENDS = ('server', 'client')


def certificates():
    """The directory with those of both ends; made if missing."""
    out = products.directory().resolve() / 'tls'
    addresses = ''.join(f'ip_address = "{address}"\n'
                        for address in LINK_ADDRESS.values())
    templates = {'ca': 'cn = "the lab"\nca\ncert_signing_key\n',
                 **{end: f'cn = "{end}"\nsigning_key\ntls_www_{end}\n'
                         f'{addresses}' for end in ENDS}}
    done = out / 'done'
    if (done.exists() and done.read_text() == ''.join(templates.values()) and
            done.stat().st_mtime > time.time() - 86400):
        return out
    out.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)

    def certtool(*arguments):
        products.run('certtool', *arguments, cwd=out,
                     way_out='(package gnutls-bin)')

    for name, text in templates.items():
        (out / f'{name}.cfg').write_text(f'{text}expiration_days = 3\n')
    certtool('--generate-privkey', '--key-type=ecdsa', '--outfile=ca-key.pem')
    certtool('--generate-self-signed', '--load-privkey=ca-key.pem',
             '--template=ca.cfg', '--outfile=ca-cert.pem')
    for end in ENDS:
        certtool('--generate-privkey', '--key-type=ecdsa',
                 f'--outfile={end}-key.pem')
        certtool('--generate-certificate', f'--load-privkey={end}-key.pem',
                 '--load-ca-certificate=ca-cert.pem',
                 '--load-ca-privkey=ca-key.pem', f'--template={end}.cfg',
                 f'--outfile={end}-cert.pem')
    done.write_text(''.join(templates.values()))
    return out


def secure(arguments, end):
    """ARGUMENTS of a QEMU with a socket chardev, with TLS for that."""
    i = next(i for i, a in enumerate(arguments) if a.startswith('socket,'))
    return ['-object', f'tls-creds-x509,id=tls0,dir={certificates()},'
                       f'endpoint={end},verify-peer=on',
            *arguments[:i], arguments[i] + ',tls-creds=tls0',
            *arguments[i + 1:]]


class Sniffer:
    """Keeps what TCP PORT carries over an interface of HOST."""

    def __init__(self, system, host, interface, port, log):
        self.path = Path(log).with_suffix('.pcap')
        self.path.unlink(missing_ok=True)
        self.child = system.start(
            'tcpdump', host, ['tcpdump', '-Z', 'root', '-U', '-n', '-s', '0',
                              '-B', '8192', '-i', interface, '-w',
                              str(self.path), f'tcp port {port}'],
            f'{log}.log')
        self.system = system
        # It says so when it has begun to listen
        patience = Patience(10, self.child.progress)
        while b'listening on' not in Path(f'{log}.log').read_bytes():
            self.child.check()
            if patience.over():
                raise LabError(f'tcpdump does not begin: {patience} (see '
                               f'{log}.log)')
            time.sleep(0.01)

    def check(self):
        """Raise if nothing was carried, or packets of the stream in clear."""
        self.system.disown(self.child)
        said = self.child.terminate(10)
        data = self.path.read_bytes()
        missed = re.search(r'(\d+) packets? dropped by kernel', said)
        if not missed or int(missed[1]):
            raise LabError(f'tcpdump has missed packets: {said.strip()}')
        if STREAM in data:
            raise LabError('TLS was asked for, but packets of the stream are '
                           f'readable on the wire (see {self.path})')
        if len(data) < LEAST:
            raise LabError('nothing went over the connection of the filters '
                           f'(see {self.path})')
