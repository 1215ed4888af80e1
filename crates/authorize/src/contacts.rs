//! Which configurations the proxies in contact run. More than one for long means that a node did
//! not get the newest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::gauge::Gauge;

/// All proxies in contact.
#[derive(Debug)]
pub struct Contacts {
    /// How many contacts run which configuration.
    configurations: Mutex<HashMap<String, usize>>,
    distinct: Gauge,
}

/// One proxy in contact, until it is dropped.
#[derive(Debug)]
pub struct Contact {
    contacts: Arc<Contacts>,
    configuration: Option<String>,
}

impl Contacts {
    pub fn new(distinct: Gauge) -> Arc<Self> {
        Arc::new(Self {
            configurations: Mutex::default(),
            distinct,
        })
    }

    pub fn begin(self: &Arc<Self>) -> Contact {
        Contact {
            contacts: Arc::clone(self),
            configuration: None,
        }
    }

    fn change(&self, from: Option<&str>, to: Option<&str>) {
        let mut known = self
            .configurations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(from) = from
            && let Some(count) = known.get_mut(from)
        {
            *count -= 1;
            if *count == 0 {
                known.remove(from);
            }
        }
        if let Some(to) = to {
            *known.entry(to.to_owned()).or_default() += 1;
        }
        self.distinct
            .set(i64::try_from(known.len()).unwrap_or(i64::MAX));
    }
}

impl Contact {
    /// The proxy says which configuration it runs, as often as that changes.
    pub fn runs(&mut self, configuration: &str) {
        // A hash is short; what is not is cut off from being a label or a leak.
        const LONGEST: usize = 64;
        let configuration: String = configuration.chars().take(LONGEST).collect();
        self.contacts
            .change(self.configuration.as_deref(), Some(&configuration));
        self.configuration = Some(configuration);
    }
}

impl Drop for Contact {
    fn drop(&mut self) {
        self.contacts.change(self.configuration.as_deref(), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_configurations_are_counted() {
        let gauge = Gauge::default();
        let contacts = Contacts::new(gauge.clone());
        let (mut a, mut b) = (contacts.begin(), contacts.begin());
        a.runs("1");
        b.runs("1");
        assert_eq!(gauge.get(), 1);
        b.runs("2");
        assert_eq!(gauge.get(), 2);
        drop(b);
        assert_eq!(gauge.get(), 1);
        drop(a);
        assert_eq!(gauge.get(), 0);
    }
}
