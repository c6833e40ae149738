//! Where something listens on a target: read from its kernel, once a listener is up.
//!
//! Here: the piece of shell that prints the kernel's table for one port, and reading it. Not here: who runs it; with
//! another system than Linux it stays unknown.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Who can reach a listener.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) enum Exposure {
    /// It could not be read.
    #[default]
    Unknown,
    /// Only the target itself.
    Loopback,
    /// Other machines; the addresses it listens on.
    Beyond(Vec<String>),
}

/// Prints the listeners on `port` behind a mark, in the kernel's own form.
pub(crate) fn script(port: u16) -> String {
    format!(
        "if [ -r /proc/net/tcp ]; then echo pcb-listeners; \
         grep -h \":{port:04X} .* 0A \" /proc/net/tcp /proc/net/tcp6 2>/dev/null; fi"
    )
}

/// Reads what [`script`] printed, among other lines perhaps.
pub(crate) fn read(text: &str, port: u16) -> Exposure {
    let addresses: Vec<IpAddr> = text
        .lines()
        .skip_while(|line| *line != "pcb-listeners")
        .filter_map(|line| read_listener(line, port))
        .collect();
    judge(&addresses)
}

/// One line of `/proc/net/tcp` or `tcp6`: number, local address, remote address, state (`0A` is listening).
fn read_listener(line: &str, port: u16) -> Option<IpAddr> {
    let mut words = line.split_ascii_whitespace();
    let (_, local, _, state) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let (address, listed) = local.split_once(':')?;
    if state != "0A" || u16::from_str_radix(listed, 16).ok()? != port {
        return None;
    }
    // Each group of eight digits is a word in the target's own byte order; all that we ask is whether it is loopback
    // or the wildcard, and little-endian is what there is.
    match address.len() {
        8 => Some(IpAddr::V4(Ipv4Addr::from(
            u32::from_str_radix(address, 16).ok()?.swap_bytes(),
        ))),
        32 => {
            let mut bytes = Vec::with_capacity(16);
            for at in [0, 8, 16, 24] {
                let word = u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?;
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)))
        }
        _ => None,
    }
}

fn is_loopback(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback(),
        IpAddr::V6(address) => {
            address.is_loopback()
                || address
                    .to_ipv4_mapped()
                    .is_some_and(|address| address.is_loopback())
        }
    }
}

/// Our listener is one of those on the port: a wildcard is exposed whoever made it, since it takes what is meant for
/// ours; beside a loopback one, a single other address is somebody else's.
fn judge(addresses: &[IpAddr]) -> Exposure {
    let wildcard = addresses.iter().any(IpAddr::is_unspecified);
    let loopback = addresses.iter().any(|address| is_loopback(*address));
    match (wildcard, loopback) {
        _ if addresses.is_empty() => Exposure::Unknown,
        (false, true) => Exposure::Loopback,
        (true, _) | (false, false) => Exposure::Beyond(addresses.iter().map(ToString::to_string).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listeners(lines: &str) -> Exposure {
        read(&format!("pcb-listeners\n{lines}"), 0x1F90)
    }

    #[test]
    fn a_listener_on_loopback_is_verified() {
        assert_eq!(
            listeners("   3: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 0 0 1\n"),
            Exposure::Loopback
        );
        assert_eq!(
            listeners(
                "  1: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 0\n"
            ),
            Exposure::Loopback
        );
    }

    #[test]
    fn a_listener_on_every_address_is_exposed() {
        let both =
            "  0: 00000000:1F90 00000000:0000 0A 0\n  1: 00000000000000000000000000000000:1F90 0:0 0A 0\n";

        assert_eq!(
            listeners(both),
            Exposure::Beyond(vec!["0.0.0.0".to_owned(), "::".to_owned()])
        );
    }

    #[test]
    fn a_wildcard_beside_our_own_listener_is_exposed_too() {
        let both = "  0: 0100007F:1F90 00000000:0000 0A 0\n  1: 00000000:1F90 00000000:0000 0A 0\n";

        assert_eq!(
            listeners(both),
            Exposure::Beyond(vec!["127.0.0.1".to_owned(), "0.0.0.0".to_owned()])
        );
    }

    #[test]
    fn somebody_elses_listener_on_another_address_is_not_ours() {
        let both = "  0: 0100007F:1F90 00000000:0000 0A 0\n  1: 0500000A:1F90 00000000:0000 0A 0\n";

        assert_eq!(listeners(both), Exposure::Loopback);
        assert_eq!(
            listeners("  1: 7F00000A:1F90 00000000:0000 0A 0\n"),
            Exposure::Beyond(vec!["10.0.0.127".to_owned()])
        );
    }

    #[test]
    fn what_cannot_be_read_is_unknown_and_never_verified() {
        assert_eq!(listeners(""), Exposure::Unknown);
        assert_eq!(read("This account is not available.\n", 8080), Exposure::Unknown);
        // A forced command cannot pass its text for a listing without the mark.
        assert_eq!(read("0: 0100007F:1F90 0:0 0A\n", 0x1F90), Exposure::Unknown);
        // A connection, another port, half a line.
        assert_eq!(
            listeners("1: 0100007F:1F90 0100007F:9999 01 0\n2: 0100007F:1F91 0:0 0A\n3: 0100007F:1F90"),
            Exposure::Unknown
        );
    }
}
