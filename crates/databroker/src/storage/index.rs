//! What a record can be found by besides its id: networks and indexed fields.

use ipnet::IpNet;
use prost_types::Any;

use super::sealed::{FieldHash, Payloads};
use crate::payload::Payload;

/// A way to find records without reading all of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    Id(String),
    /// Records whose network contains this one.
    Network(IpNet),
    /// Records whose indexed text field has this value.
    Field {
        path: String,
        value: String,
    },
}

/// What is kept beside a record so that a [`Lookup`] finds it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    pub network: Option<IpNet>,
    pub fields: Vec<FieldHash>,
}

impl Index {
    /// `indexable` are the paths of the kind's options.
    pub fn of(payloads: &Payloads, kind: &str, data: Option<&Any>, indexable: &[String]) -> Self {
        // Most records have neither, and need not be taken apart.
        let data = data.filter(|data| !indexable.is_empty() || Payload::may_have_network(data));
        let Some(payload) = data.and_then(Payload::read) else {
            return Self::default();
        };
        let fields = indexable
            .iter()
            .filter_map(|path| Some(payloads.field_hash(kind, path, &payload.text_at(path)?)))
            .collect();
        Self {
            network: payload.network(),
            fields,
        }
    }
}

/// Every network that contains `network`, itself included, longest prefix first.
pub fn containing(network: IpNet) -> impl Iterator<Item = IpNet> {
    std::iter::successors(Some(network.trunc()), IpNet::supernet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containing_networks_go_up_to_the_whole() {
        let all: Vec<_> = containing("10.1.2.3/32".parse().unwrap()).collect();
        assert_eq!(all.len(), 33);
        assert_eq!(all[8].to_string(), "10.1.2.0/24");
        assert_eq!(all[32].to_string(), "0.0.0.0/0");
    }
}
