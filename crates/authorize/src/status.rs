//! Tells how the copy of the databroker's records stands: in `/status`, and its age as a metric.
//!
//! It never makes the process unready: decisions go on from the copy, and whatever must not rest on
//! old data has a `max_data_age`.

use std::collections::BTreeMap;
use std::time::Duration;

use postern_common::lifecycle::Lifecycle;

use crate::metrics::Metrics;
use crate::replica::Replica;

/// Name of the copy in `/status`.
const PART: &str = "authorize.data";

const EVERY: Duration = Duration::from_secs(1);

/// A copy that is older is worth a remark.
const OLD: Duration = Duration::from_secs(5);

pub async fn tell(replica: &Replica, metrics: &Metrics, lifecycle: &Lifecycle) {
    let mut remark = None;
    loop {
        if let (Some(age), Some(data)) = (replica.age(), replica.data()) {
            metrics.data_age.set(age.as_secs_f64());
            let facts = [
                ("age_seconds", format!("{:.1}", age.as_secs_f64())),
                ("server_version", data.server_version.to_string()),
                ("record_version", data.version().to_string()),
            ];
            let facts: BTreeMap<_, _> = facts
                .into_iter()
                .map(|(name, fact)| (name.to_owned(), fact))
                .collect();
            lifecycle.parts().tell_all(PART, facts);
            match reason(age, replica.is_split()) {
                Some(reason) => remark
                    .get_or_insert_with(|| lifecycle.degraded(PART, &reason))
                    .because(&reason),
                None => remark = None,
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn reason(age: Duration, split: bool) -> Option<String> {
    if split {
        return Some(
            "the databrokers behind databroker_service_url keep different data, probably each its own memory or \
             file storage; give them one Postgres, or run one only"
                .to_owned(),
        );
    }
    (age > OLD).then(|| {
        format!(
            "the databroker has not told for {} s that this copy has everything; decisions rest on it all the same, \
             except on routes with a max_data_age",
            age.as_secs()
        )
    })
}
