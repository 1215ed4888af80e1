//! What the databroker keeps about a person, for their own eyes.

use jiff::Timestamp;
use postern_common::authz::SessionSummary;
use postern_common::rpc::Transport;
use postern_common::rpc::stubs::databroker::GetRequest;
use postern_common::rpc::stubs::databroker::data_broker_service_client::DataBrokerServiceClient;
use postern_common::rpc::stubs::session::Session;
use postern_common::rpc::stubs::user::User;
use postern_common::rpc::token::ClientToken;
use prost::Message;
use tonic::service::interceptor::InterceptedService;

use crate::core::Core;
use crate::limits;

const SESSION: &str = "type.googleapis.com/session.Session";
const USER: &str = "type.googleapis.com/user.User";

/// Claims that secure the sign-in and say nothing about the person.
const OF_THE_PROTOCOL: [&str; 4] = ["nonce", "at_hash", "c_hash", "jti"];

/// Fit for the page. Tokens are never in it.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub name: String,
    pub expires: Option<Timestamp>,
    /// When the session's record was last written: at sign-in, or since, when a refresh or user info
    /// brought something new.
    pub data_from: Option<Timestamp>,
    pub claims: Vec<(String, String)>,
}

/// What a record holds, and when that was written.
struct Stored<M> {
    payload: M,
    written: Option<prost_types::Timestamp>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("databroker did not answer in time")]
    Late,
    #[error("databroker refused")]
    Refused(#[source] tonic::Status),
    #[error("a record cannot be read")]
    Malformed(#[source] prost::DecodeError),
}

type Client = DataBrokerServiceClient<InterceptedService<Transport, ClientToken>>;

/// Reads session and user.
pub(super) async fn read(core: &Core, summary: &SessionSummary) -> Result<Records, ReadError> {
    let (transport, token) = (
        core.shared.databroker.clone(),
        core.shared.keys.for_client(),
    );
    let mut client = DataBrokerServiceClient::with_interceptor(transport, token);
    let reading = async {
        let session: Option<Stored<Session>> =
            get(&mut client, SESSION, &summary.session_id).await?;
        let user: Option<Stored<User>> = get(&mut client, USER, &summary.user_id).await?;
        Ok(records(session, user))
    };
    tokio::time::timeout(limits::DATABROKER_CALL, reading)
        .await
        .map_err(|_| ReadError::Late)?
}

async fn get<M: Message + Default>(
    client: &mut Client,
    kind: &str,
    id: &str,
) -> Result<Option<Stored<M>>, ReadError> {
    let request = GetRequest {
        r#type: kind.to_owned(),
        id: id.to_owned(),
    };
    let record = match client.get(request).await {
        Ok(response) => response.into_inner().record,
        Err(status) if status.code() == tonic::Code::NotFound => None,
        Err(status) => return Err(ReadError::Refused(status)),
    };
    let Some((data, written)) = record.and_then(|record| Some((record.data?, record.modified_at)))
    else {
        return Ok(None);
    };
    let payload = M::decode(&*data.value).map_err(ReadError::Malformed)?;
    Ok(Some(Stored { payload, written }))
}

fn records(session: Option<Stored<Session>>, user: Option<Stored<User>>) -> Records {
    let time = |time: Option<prost_types::Timestamp>| {
        time.and_then(|time| Timestamp::from_second(time.seconds).ok())
    };
    let mut records = Records::default();
    if let Some(Stored { payload, written }) = session {
        records.expires = time(payload.expires_at);
        records.data_from = time(written.or(payload.issued_at));
        records.claims = claims(payload.claims);
    }
    if let Some(Stored { payload: user, .. }) = user {
        records.name = user.name;
        for (name, value) in claims(user.claims) {
            if !records.claims.iter().any(|(known, _)| *known == name) {
                records.claims.push((name, value));
            }
        }
    }
    records.claims.sort();
    records
}

fn claims(
    claims: impl IntoIterator<Item = (String, prost_types::ListValue)>,
) -> Vec<(String, String)> {
    let one = |(name, list): (String, prost_types::ListValue)| {
        let values: Vec<_> = list.values.into_iter().filter_map(text).collect();
        (name, values.join(", "))
    };
    let claims = claims.into_iter();
    claims
        .filter(|(name, _)| !OF_THE_PROTOCOL.contains(&name.as_str()))
        .map(one)
        .collect()
}

fn text(value: prost_types::Value) -> Option<String> {
    use prost_types::value::Kind;
    Some(match value.kind? {
        Kind::StringValue(text) => text,
        Kind::NumberValue(number) => number.to_string(),
        Kind::BoolValue(truth) => truth.to_string(),
        Kind::NullValue(_) | Kind::StructValue(_) | Kind::ListValue(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::{ListValue, Value, value::Kind};

    fn stored<M>(payload: M, written: Option<i64>) -> Stored<M> {
        let written = written.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 });
        Stored { payload, written }
    }

    #[test]
    fn c28_the_age_of_the_data_is_that_of_the_record() {
        let session = Session {
            issued_at: Some(prost_types::Timestamp {
                seconds: 1000,
                nanos: 0,
            }),
            ..Session::default()
        };
        for (written, shown) in [(Some(5000), 5000), (None, 1000)] {
            let records = records(Some(stored(session.clone(), written)), None);
            assert_eq!(records.data_from.unwrap().as_second(), shown);
        }
    }

    #[test]
    fn claims_of_session_and_user_are_shown_together() {
        let list = |kind: Kind| ListValue {
            values: vec![Value { kind: Some(kind) }],
        };
        let session = Session {
            claims: [("groups".to_owned(), list(Kind::StringValue("eng".into())))].into(),
            ..Session::default()
        };
        let user = User {
            name: "Ann".to_owned(),
            claims: [
                ("groups".to_owned(), list(Kind::StringValue("old".into()))),
                ("admin".to_owned(), list(Kind::BoolValue(true))),
            ]
            .into(),
            ..User::default()
        };
        let records = records(Some(stored(session, None)), Some(stored(user, None)));
        assert_eq!(records.name, "Ann");
        let expected = [("admin", "true"), ("groups", "eng")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(records.claims, expected);
    }
}
