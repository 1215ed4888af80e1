//! Records that are kept for whoever reads them, but that mean nothing to this program.

use std::sync::atomic::{AtomicBool, Ordering};

use postern_common::rpc::stubs::databroker::Record;

/// What Pomerium's ingress controller and console write, for Pomerium to take as configuration.
const CONFIGURATION: &str = "type.googleapis.com/pomerium.config.";

/// Tells once that somebody configures a Pomerium here.
#[derive(Debug, Default)]
pub struct Unread {
    told: AtomicBool,
}

impl Unread {
    pub fn tell(&self, records: &[Record]) {
        if let Some(kind) = self.first(records) {
            tracing::warn!(
                kind,
                "configuration was written to the databroker: it is kept, but only the configuration \
                 file and the environment count here"
            );
        }
    }

    /// The type to tell about, if that has not been done.
    fn first<'a>(&self, records: &'a [Record]) -> Option<&'a str> {
        let kinds = records.iter().filter(|record| record.deleted_at.is_none());
        let found = kinds
            .map(|record| record.r#type.as_str())
            .find(|kind| kind.starts_with(CONFIGURATION))?;
        (!self.told.swap(true, Ordering::Relaxed)).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_is_told_once() {
        let record = |kind: &str| Record {
            r#type: format!("type.googleapis.com/{kind}"),
            ..Record::default()
        };
        let unread = Unread::default();
        assert_eq!(unread.first(&[record("session.Session")]), None);
        let deleted = Record {
            deleted_at: Some(prost_types::Timestamp::default()),
            ..record("pomerium.config.Route")
        };
        assert_eq!(unread.first(&[deleted]), None);
        let written = [record("user.User"), record("pomerium.config.Config")];
        assert_eq!(unread.first(&written), Some(written[1].r#type.as_str()));
        assert_eq!(unread.first(&written), None);
    }
}
