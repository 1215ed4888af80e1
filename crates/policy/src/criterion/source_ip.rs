//! `source_ip`: which network the client is in.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use serde_json::Value;

use crate::error::{Place, Report};
use crate::input::Input;
use crate::matcher::operand;
use crate::reason::Reason;
use crate::syntax::kind;
use crate::text::some_of;
use crate::truth::Finding;

/// Networks as sorted ranges that do not touch, so that a long list costs no more than a short one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SourceIpCriterion {
    written: Box<[IpNet]>,
    v4: Box<[(Ipv4Addr, Ipv4Addr)]>,
    v6: Box<[(Ipv6Addr, Ipv6Addr)]>,
}

impl SourceIpCriterion {
    pub(crate) fn compile(data: &Value, place: &Place, report: &mut Report) -> Option<Self> {
        if !matches!(data, Value::String(_) | Value::Array(_)) {
            report.error_with_hint(
                place,
                format!(
                    "`source_ip` takes an address, a network or a list of them, this is {}",
                    kind(data)
                ),
                "write `source_ip: 10.0.0.0/8`",
            );
            return None;
        }
        let wrong = report.errors.len();
        let mut networks = Vec::new();
        for (text, place) in operand::one_or_more(data, place, report) {
            match parse(text) {
                Some(network) => networks.push(network),
                None => report.error_with_hint(
                    &place,
                    format!("`{text}` is neither an IP address nor a network"),
                    "write `192.0.2.7` or `192.0.2.0/24`, `2001:db8::1` or `2001:db8::/32`",
                ),
            }
        }
        (report.errors.len() == wrong).then(|| Self::new(networks))
    }

    fn new(networks: Vec<IpNet>) -> Self {
        let v4 = networks.iter().filter_map(|network| match network {
            IpNet::V4(network) => Some((network.network(), network.broadcast())),
            IpNet::V6(_) => None,
        });
        let v6 = networks.iter().filter_map(|network| match network {
            IpNet::V4(_) => None,
            IpNet::V6(network) => Some((network.network(), network.broadcast())),
        });
        Self {
            v4: merge(v4.collect()),
            v6: merge(v6.collect()),
            written: networks.into(),
        }
    }

    pub(crate) fn evaluate(&self, input: &Input<'_>) -> Finding {
        let inside = match input.client_ip.to_canonical() {
            IpAddr::V4(address) => contains(&self.v4, address),
            IpAddr::V6(address) => contains(&self.v6, address),
        };
        Finding::new(inside, Reason::SourceIpOk, Reason::SourceIpUnauthorized)
    }
}

/// An address or a network; what is IPv4-mapped becomes IPv4.
fn parse(text: &str) -> Option<IpNet> {
    let network = match text.parse::<IpNet>() {
        Ok(network) => network.trunc(),
        Err(_) => IpNet::from(text.parse::<IpAddr>().ok()?),
    };
    if let IpNet::V6(mapped) = network
        && let Some(address) = mapped.addr().to_ipv4_mapped()
        && let Some(length) = mapped.prefix_len().checked_sub(96)
    {
        return Ipv4Net::new(address, length).ok().map(IpNet::V4);
    }
    Some(network)
}

/// Sorts ranges and joins those that overlap.
fn merge<A: Ord + Copy>(mut ranges: Vec<(A, A)>) -> Box<[(A, A)]> {
    ranges.sort_unstable();
    let mut merged: Vec<(A, A)> = Vec::with_capacity(ranges.len());
    for (start, end) in ranges {
        match merged.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged.into()
}

fn contains<A: Ord + Copy>(ranges: &[(A, A)], address: A) -> bool {
    let after = ranges.partition_point(|(start, _)| *start <= address);
    after
        .checked_sub(1)
        .and_then(|last| ranges.get(last))
        .is_some_and(|(_, end)| address <= *end)
}

pub(crate) fn met(input: &Input<'_>) -> String {
    input.client_ip.to_canonical().to_string()
}

impl fmt::Display for SourceIpCriterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.written {
            [] => f.write_str("client address in an empty list"),
            networks => write!(
                f,
                "client address in {}",
                some_of(networks.iter().map(ToString::to_string))
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::truth::Truth;

    fn compile(data: &Value) -> Result<SourceIpCriterion, Vec<String>> {
        let mut report = Report::default();
        SourceIpCriterion::compile(data, &Place::root(), &mut report)
            .ok_or_else(|| report.errors.iter().map(ToString::to_string).collect())
    }

    fn inside(data: &Value, address: &str) -> bool {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let input = Input::anonymous(address.parse().unwrap(), now);
        compile(data).unwrap().evaluate(&input).truth == Truth::True
    }

    #[test]
    fn s37_addresses_and_networks() {
        for (data, address, expected) in [
            (json!("10.0.0.0/8"), "10.255.0.1", true),
            (json!("10.0.0.0/8"), "11.0.0.0", false),
            (json!("10.1.2.3/8"), "10.0.0.1", true),
            (json!("192.0.2.7"), "192.0.2.7", true),
            (json!("192.0.2.7"), "192.0.2.8", false),
            (json!(["192.0.2.7", "2001:db8::/32"]), "2001:db8:1::1", true),
            (json!(["192.0.2.7", "2001:db8::/32"]), "2001:db9::1", false),
            (json!("0.0.0.0/0"), "255.255.255.255", true),
            (json!("0.0.0.0/0"), "::1", false),
            (json!("::/0"), "1.2.3.4", false),
            (json!([]), "1.2.3.4", false),
        ] {
            assert_eq!(inside(&data, address), expected, "{data} {address}");
        }
    }

    #[test]
    fn s37_ipv4_mapped_addresses_count_as_ipv4() {
        assert!(inside(&json!("10.0.0.0/8"), "::ffff:10.1.2.3"));
        assert!(inside(&json!("::ffff:10.0.0.0/104"), "10.1.2.3"));
        assert!(inside(&json!("::ffff:10.0.0.1"), "10.0.0.1"));
        assert!(!inside(&json!("::/0"), "::ffff:10.0.0.1"));
        assert!(!inside(&json!("10.0.0.0/8"), "::10.1.2.3"));
    }

    #[test]
    fn s34_anything_else_is_an_error() {
        let errors = compile(&json!(["10.0.0.0/33", 7, "corp.test", "10.0.0.1"])).unwrap_err();
        assert_eq!(errors.len(), 3);
        assert!(
            errors
                .iter()
                .any(|error| error.starts_with("/0: `10.0.0.0/33`")),
            "{errors:?}"
        );
        assert!(
            errors
                .iter()
                .any(|error| error.starts_with("/1: expected text")),
            "{errors:?}"
        );
        for data in [json!(null), json!({"is": "10.0.0.1"}), json!(10), json!("")] {
            assert_eq!(compile(&data).unwrap_err().len(), 1, "{data}");
        }
    }

    proptest! {
        #[test]
        fn ranges_agree_with_the_networks_one_by_one(
            networks in proptest::collection::vec((any::<u32>(), 0u8..=32), 0..12),
            address in any::<u32>(),
            near in proptest::option::of(0usize..12),
        ) {
            let networks: Vec<IpNet> = networks
                .into_iter()
                .map(|(address, length)| IpNet::V4(Ipv4Net::new(address.into(), length).unwrap()).trunc())
                .collect();
            let address = match near.and_then(|index| networks.get(index)) {
                Some(IpNet::V4(network)) => network.broadcast(),
                _ => Ipv4Addr::from(address),
            };
            let input = Input::anonymous(address.into(), jiff::Timestamp::UNIX_EPOCH);
            let expected = networks.iter().any(|network| network.contains(&IpAddr::V4(address)));
            let criterion = SourceIpCriterion::new(networks);
            prop_assert_eq!(criterion.evaluate(&input).truth, Truth::from(expected));
        }
    }
}
