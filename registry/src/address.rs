//! Which network addresses may be spoken to when a URL came from a file: what is on the open internet, and beyond that only
//! what an operator named.
//!
//! A process that sends requests where a text tells it to can be made to speak to what only it can reach: the cloud's
//! metadata service, a database without a password, itself. So the address decides, not the name: names are judged again
//! whenever they are resolved ([`Allowed::permits`]).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Whether `address` belongs to the open internet: neither this machine, nor a private or link-local network, nor reserved
/// for anything special; and for addresses that stand for an IPv4 one, whether that does.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => match embedded_v4(address) {
            Some(inner) => is_public_v4(inner),
            None => is_public_v6(address),
        },
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    const SPECIAL: [(u32, u32); 15] = [
        (0x0000_0000, 8),  // this network
        (0x0A00_0000, 8),  // private
        (0x6440_0000, 10), // shared by a provider's customers
        (0x7F00_0000, 8),  // this machine
        (0xA9FE_0000, 16), // link-local, metadata services
        (0xAC10_0000, 12), // private
        (0xC000_0000, 24), // protocols
        (0xC000_0200, 24), // documentation
        (0xC058_6300, 24), // relays
        (0xC0A8_0000, 16), // private
        (0xC612_0000, 15), // benchmarks
        (0xC633_6400, 24), // documentation
        (0xCB00_7100, 24), // documentation
        (0xE000_0000, 4),  // multicast
        (0xF000_0000, 4),  // reserved, broadcast
    ];
    let bits = address.to_bits();
    !SPECIAL.iter().any(|(network, length)| (bits ^ network) >> (32 - length) == 0)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    const SPECIAL: [(u128, u32); 4] = [
        (0x2001_0000 << 96, 23), // protocols, tunnels that hide an IPv4 address
        (0x2001_0db8 << 96, 32), // documentation
        (0x2002_0000 << 96, 16), // tunnels that hide an IPv4 address
        (0x3fff_0000 << 96, 20), // documentation
    ];
    let bits = address.to_bits();
    // Of all that is assigned, only this eighth is global unicast.
    bits >> 125 == 1 && !SPECIAL.iter().any(|(network, length)| (bits ^ network) >> (128 - length) == 0)
}

/// The IPv4 address that an IPv6 one stands for: mapped, compatible, or behind a translator.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = address.to_bits();
    let is_embedding = [0xffff, 0, 0x0064_ff9b << 64].contains(&(bits >> 32)) && bits > 1;
    is_embedding.then(|| Ipv4Addr::from_bits((bits & 0xffff_ffff) as u32))
}

/// A range of addresses, written `10.1.0.0/16`; a single one without a length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    length: u8,
}

impl Network {
    /// Whether `address` is in it. An IPv4 address that is written as an IPv6 one is the same address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.first, address.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                u64::from(first.to_bits() ^ address.to_bits()) >> (32 - self.length) == 0
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                let differing = first.to_bits() ^ address.to_bits();
                differing.checked_shr(128 - u32::from(self.length)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no range of addresses");
        let (first, length) = text.split_once('/').map_or((text, None), |(first, length)| (first, Some(length)));
        let first: IpAddr = first.parse().map_err(|_| wrong())?;
        let most = if first.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => most,
            Some(length) => length.parse().ok().filter(|length| *length <= most).ok_or_else(wrong)?,
        };
        Ok(Self { first, length })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.length)
    }
}

/// A pattern of host names: `hooks.example.com`, or `*.example.com` for all below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern(String);

impl HostPattern {
    /// Whether `host` is meant; names are compared without regard to case and to a dot at the end.
    pub fn matches(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        match self.0.strip_prefix('*') {
            Some(domain) => host.strip_suffix(domain).is_some_and(|below| !below.is_empty()),
            None => host == self.0,
        }
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_prefix("*.").unwrap_or(text);
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '[' | ']');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) || (text != name && !name.contains('.'))
        {
            return Err(format!("`{text}` is no host"));
        }
        Ok(Self(text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase()))
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What an operator allowed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allowed {
    /// The hosts that may be spoken to at all.
    pub hosts: Vec<HostPattern>,
    /// Hosts whose addresses may be private ones.
    pub private_hosts: Vec<HostPattern>,
    /// Addresses that may be spoken to although they are not public.
    pub private_networks: Vec<Network>,
}

impl Allowed {
    /// Whether `host`, as it stands in a URL, may be spoken to at all.
    pub fn has_host(&self, host: &str) -> bool {
        self.hosts.iter().any(|pattern| pattern.matches(host))
    }

    /// Whether `host` was named as one whose addresses may be private.
    pub fn has_private_host(&self, host: &str) -> bool {
        self.private_hosts.iter().any(|pattern| pattern.matches(host))
    }

    /// Whether a connection for `host` may go to `address`. A private host may be on this machine or in a private
    /// network; link-local addresses, where clouds keep their metadata services, must be named as a network.
    pub fn permits(&self, host: &str, address: IpAddr) -> bool {
        is_public(address)
            || self.private_networks.iter().any(|network| network.contains(address))
            || (self.has_private_host(host) && is_private(address))
    }
}

/// This machine, or a private network.
fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_loopback() || address.is_private(),
        // The metadata service of one cloud is in the private range.
        IpAddr::V6(address) => {
            address.is_loopback()
                || (address.is_unique_local() && address != Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_the_open_internet_is_public() {
        for public in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.0.1",
            "172.32.0.1",
            "192.167.1.1",
            "198.17.1.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00::1",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
        ] {
            assert!(is_public(ip(public)), "{public}");
        }
        for special in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "100::1",
            "2001:db8::1",
            "2001::1",
            "2002:7f00:1::1",
            "3fff::1",
            "4000::1",
        ] {
            assert!(!is_public(ip(special)), "{special}");
        }
    }

    proptest! {
        #[test]
        fn an_ipv4_address_is_as_public_in_whatever_form(bits in any::<u32>()) {
            let plain = Ipv4Addr::from_bits(bits);
            let public = is_public(IpAddr::V4(plain));
            prop_assert_eq!(is_public(IpAddr::V6(plain.to_ipv6_mapped())), public);
            let translated = Ipv6Addr::from_bits((0x0064_ff9b_u128 << 96) | u128::from(bits));
            prop_assert_eq!(is_public(IpAddr::V6(translated)), public);
            // What the standard library knows to be special is never public.
            if plain.is_private() || plain.is_loopback() || plain.is_link_local() || plain.is_multicast() {
                prop_assert!(!public);
            }
        }

        #[test]
        fn a_network_has_the_addresses_with_its_first_bits(bits in any::<u32>(), other in any::<u32>(), length in 0_u8..=32) {
            let network: Network = format!("{}/{length}", Ipv4Addr::from_bits(bits)).parse().unwrap();
            let same = (0..length).all(|bit| (bits ^ other) & (1 << (31 - bit)) == 0);
            prop_assert_eq!(network.contains(IpAddr::V4(Ipv4Addr::from_bits(other))), same);
        }
    }

    #[test]
    fn networks_of_both_families_are_read() {
        let network = |text: &str| text.parse::<Network>().unwrap();
        assert!(network("fd00::/8").contains(ip("fd12::1")) && !network("fd00::/8").contains(ip("fe12::1")));
        assert!(network("::/0").contains(ip("2a00::1")) && !network("::/0").contains(ip("1.1.1.1")));
        assert!(network("127.0.0.1").contains(ip("::ffff:127.0.0.1")), "the same address");
        assert_eq!(network("10.0.0.0/8").to_string(), "10.0.0.0/8");
        for wrong in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "host", "10.0.0.0/-1", "10.0.0.0/8/8"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn hosts_are_compared_as_names() {
        let pattern = |text: &str| text.parse::<HostPattern>().unwrap();
        assert!(pattern("Hooks.Example.com").matches("hooks.example.com."));
        assert!(!pattern("example.com").matches("hooks.example.com"));
        assert!(pattern("*.example.com").matches("a.b.example.com"));
        for other in ["example.com", ".example.com", "badexample.com", "example.com.evil.net"] {
            assert!(!pattern("*.example.com").matches(other), "{other}");
        }
        for wrong in ["", "*", "*.", "*.com", "*.a*.com", "a b", "https://a", "a/b", "*a.com"] {
            assert!(wrong.parse::<HostPattern>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_private_must_be_named() {
        let allowed = Allowed {
            hosts: vec!["*.example.com".parse().unwrap()],
            private_hosts: vec!["chat.internal".parse().unwrap()],
            private_networks: vec!["10.1.0.0/16".parse().unwrap()],
        };
        assert!(allowed.permits("a.example.com", ip("1.1.1.1")));
        assert!(!allowed.permits("a.example.com", ip("10.2.0.1")) && allowed.permits("a.example.com", ip("10.1.0.1")));
        assert!(allowed.permits("a.example.com", ip("::ffff:10.1.0.1")));
        for address in ["127.0.0.1", "192.168.1.1", "fd00::1", "::1"] {
            assert!(allowed.permits("chat.internal", ip(address)), "{address}");
            assert!(!allowed.permits("a.example.com", ip(address)), "{address}");
        }
        for address in ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "0.0.0.0", "224.0.0.1", "fe80::1"]
        {
            assert!(!allowed.permits("chat.internal", ip(address)), "{address}");
        }
    }
}
