//! Host routes that another process has left, by `/proc/net/route` and `/proc/net/ipv6_route` (proc_pid_net(5)).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Returns all host routes of this network namespace: addresses with the names of their interfaces.
///
/// # Errors
/// Fails if `/proc` cannot be read.
pub fn host_routes() -> io::Result<Vec<(IpAddr, String)>> {
    let read = |name| fs::read_to_string(format!("/proc/thread-self/net/{name}"));
    let (four, six) = (read("route")?, read("ipv6_route"));
    let mut routes: Vec<_> = four.lines().filter_map(parse_ipv4).collect();
    // Missing in a kernel without IPv6.
    routes.extend(six.unwrap_or_default().lines().filter_map(parse_ipv6));
    Ok(routes)
}

/// Parses interface, destination, five other columns, and mask. The numbers have the byte order of the host.
fn parse_ipv4(line: &str) -> Option<(IpAddr, String)> {
    let mut words = line.split_whitespace();
    let (name, destination) = (words.next()?, words.next()?);
    let is_host = words.nth(5)? == "FFFFFFFF";
    let octets = u32::from_str_radix(destination, 16).ok()?.to_ne_bytes();
    is_host.then(|| (Ipv4Addr::from(octets).into(), name.to_owned()))
}

/// Parses destination, length of its prefix, seven other columns, and interface.
fn parse_ipv6(line: &str) -> Option<(IpAddr, String)> {
    let mut words = line.split_whitespace();
    let (destination, length) = (words.next()?, words.next()?);
    let address = u128::from_str_radix(destination, 16).ok()?;
    let name = words.nth(7)?;
    (length == "80").then(|| (Ipv6Addr::from(address).into(), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::{parse_ipv4, parse_ipv6};

    #[test]
    fn host_routes_are_found() {
        let octets = u32::from_ne_bytes([10, 1, 0, 7]);
        let line = |mask: &str| format!("mt0\t{octets:08X}\t00000000\t0005\t0\t0\t0\t{mask}\t0\t0\t0   ");
        assert_eq!(
            parse_ipv4(&line("FFFFFFFF")),
            Some(([10, 1, 0, 7].into(), "mt0".into()))
        );
        assert_eq!(parse_ipv4(&line("0000FFFF")), None);
        assert_eq!(
            parse_ipv4("Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU"),
            None
        );
        let line = |length: &str| {
            let zero = "0".repeat(32);
            format!(
                "fd000000000000000000000000000007 {length} {zero} 00 {zero} 00000400 00000001 00000000 00000001      mt0"
            )
        };
        let address: std::net::IpAddr = "fd00::7".parse().unwrap();
        assert_eq!(parse_ipv6(&line("80")), Some((address, "mt0".into())));
        assert_eq!(parse_ipv6(&line("40")), None);
    }
}
