"""Which addresses a document may be fetched from. Pure.

Decided by the address that is about to be connected to, never by how it was written: so a name that
changes its mind, a redirect and `http://0x7f.1/` all meet the same question.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?", re.ASCII)

NOT_PUBLIC_4 = tuple(
    IPv4Network(network)
    for network in (
        "168.63.129.16/32",  # Azure's agent answers here, in every one of its networks
        "192.0.0.0/24",  # protocol assignments; 192.0.0.192 is Oracle's metadata service
        "192.88.99.0/24",  # relays from 6to4, RFC 7526
    )
)
"""What `is_global` of one Python or another takes for public."""

PUBLIC_6 = IPv6Network("2000::/3")
"""All of IPv6 that is handed out for the internet, RFC 4291 and IANA."""

NOT_PUBLIC_6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, among them Teredo, which hides an IPv4 address
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4 hides an IPv4 address; given up by RFC 7526
        "3fff::/20",  # documentation
    )
)

NAT64 = IPv6Network("64:ff9b::/96")
"""The gateway's prefix of RFC 6052: how an IPv4 address looks in a network that has IPv6 only."""


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """True if the address is one of the public internet, and hides none that is not."""
    if isinstance(address, IPv4Address):
        return (
            address.is_global
            and not address.is_multicast
            and not any(address in network for network in NOT_PUBLIC_4)
        )
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    return address in PUBLIC_6 and not any(address in network for network in NOT_PUBLIC_6)


@dataclass(frozen=True, slots=True)
class Allowed:
    """Who may be reached besides the public internet.

    Attributes:
        hosts: Names, in lower case; whatever address they have.
        networks: Addresses, under whatever name.
    """

    hosts: frozenset[str] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Allowed:
        """Read names, addresses and networks, separated by commas.

        Raises:
            ValueError: One is none of these; the message names it.
        """
        hosts, networks = set[str](), list[IPv4Network | IPv6Network]()
        for item in filter(None, (part.strip().lower() for part in text.split(","))):
            try:
                networks.append(ipaddress.ip_network(item))
            except ValueError as error:
                # What ends in a digit or has a slash was meant as numbers.
                if not _HOST.fullmatch(item) or item[-1].isdigit():
                    raise ValueError(f"{item!r} is neither a host nor a network") from error
                hosts.add(item)
        return cls(frozenset(hosts), tuple(networks))

    def may_reach(self, host: str, address: str) -> bool:
        """True if a connection for that host may go to that address.

        Args:
            host: As in the URL.
            address: What the socket would be connected to, numeric; may have a zone (`%eth0`).
        """
        numeric = ipaddress.ip_address(address)
        if isinstance(numeric, IPv6Address) and numeric.ipv4_mapped is not None:
            numeric = numeric.ipv4_mapped
        return (
            is_public(numeric)
            or host.lower() in self.hosts
            or any(numeric in network for network in self.networks)
        )
