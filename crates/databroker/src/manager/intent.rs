//! Who may use a refresh token now.
//!
//! A lease does not stop a holder that was frozen and wakes up. So whoever wants to refresh a
//! session first writes down that he does, under a version check, and until when; nobody else
//! refreshes that session before that time. A provider that takes a second use of a refresh token
//! for theft never sees one.

use jiff::{SignedDuration, Timestamp};
use postern_common::rpc::stubs::databroker::{GetRequest, Record};
use postern_identity::REFRESH_DEADLINE;
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{Any, Struct, Value};
use tonic::Code;

use super::job::Worker;
use crate::storage::Refused;
use crate::writer::WriteError;

pub(crate) const INTENT: &str = "type.googleapis.com/postern.RefreshIntent";
const STRUCT: &str = "type.googleapis.com/google.protobuf.Struct";
const UNTIL: &str = "until";

/// Beyond the longest refresh: time to store what it brought, and clocks that differ.
const MARGIN: SignedDuration = SignedDuration::from_secs(10);

/// The right to refresh one session, until it is given back or has run out.
#[derive(Debug)]
pub(crate) struct Intent {
    session: String,
    version: u64,
}

/// Why there is none.
#[derive(Debug)]
pub(crate) enum NoIntent {
    /// Another one is at it, or was and may be still.
    Taken { until: Timestamp },
    /// The databroker could not say or write.
    Unknown(String),
}

impl Worker {
    /// Claims a session for one refresh.
    pub(crate) async fn claim(&self, session: &str) -> Result<Intent, NoIntent> {
        let now = (self.now)();
        let request = GetRequest {
            r#type: INTENT.to_owned(),
            id: session.to_owned(),
        };
        let found = match self.client.clone().get(request).await {
            Ok(answer) => answer.into_inner().record,
            Err(status) if status.code() == Code::NotFound => None,
            Err(status) => return Err(NoIntent::Unknown(status.to_string())),
        };
        if let Some(until) = found.as_ref().and_then(until).filter(|until| *until > now) {
            return Err(NoIntent::Taken { until });
        }
        let length = SignedDuration::try_from(REFRESH_DEADLINE).unwrap_or(MARGIN);
        let end = now
            .saturating_add(length.saturating_add(MARGIN))
            .unwrap_or(now);
        let version = found.map(|record| record.version);
        match self.databroker.put_if(record(session, end), version).await {
            Ok(receipt) => Ok(Intent {
                session: session.to_owned(),
                version: receipt.records.first().map_or(0, |r| r.version),
            }),
            Err(WriteError::Refused(Refused::Conflict { .. })) => {
                Err(NoIntent::Taken { until: end })
            }
            Err(error) => Err(NoIntent::Unknown(error.to_string())),
        }
    }

    /// Gives it back, unless somebody else has it by now. The record stays, so that the next
    /// claim is made under its version; it goes when it has not been used for a while.
    pub(crate) async fn finish(&self, intent: Intent) {
        let ended = record(&intent.session, (self.now)());
        // If it fails, it runs out by itself.
        let _ = self.databroker.put_if(ended, Some(intent.version)).await;
    }
}

fn record(session: &str, until: Timestamp) -> Record {
    let value = Value {
        kind: Some(Kind::StringValue(until.to_string())),
    };
    let data = Struct {
        fields: [(UNTIL.to_owned(), value)].into(),
    };
    Record {
        r#type: INTENT.to_owned(),
        id: session.to_owned(),
        data: Some(Any {
            type_url: STRUCT.to_owned(),
            value: data.encode_to_vec(),
        }),
        ..Record::default()
    }
}

fn until(record: &Record) -> Option<Timestamp> {
    let data = Struct::decode(record.data.as_ref()?.value.as_slice()).ok()?;
    match data.fields.get(UNTIL)?.kind.as_ref()? {
        Kind::StringValue(text) => text.parse().ok(),
        _ => None,
    }
}
