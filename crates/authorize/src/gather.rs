//! Gathers the facts that a decision needs. The only part of a decision that waits: for the
//! databroker, when the copy does not have what the request's credential names.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use postern_common::crypto::handle::Handle;
use postern_common::rpc::stubs::databroker::Record;
use postern_common::rpc::stubs::device;
use serde_json::Value;

use crate::bearer::Made;
use crate::credential::NoCredential;
use crate::facts::{Person, PersonKind, PersonVersions, ProvenDevice, Rejection, Visitor};
use crate::records::{
    self, DirectoryUser, KeepTokens, RecordError, ServiceAccount, Session, User, record_type,
};
use crate::replica::data::{Data, Table, Versioned};
use crate::replica::{LookupError, Replica, Wanted};

/// Where and how long to look.
#[derive(Debug, Clone, Copy)]
pub struct Gather<'a> {
    pub replica: &'a Replica,
    /// For each question to the databroker.
    pub within: Duration,
    pub keep_tokens: KeepTokens,
    pub now: Timestamp,
}

/// What a handle names.
enum Named {
    Session(Versioned<Session>, Freshness),
    ServiceAccount(Versioned<ServiceAccount>, Freshness),
    Nothing,
}

/// Whether the copy is known to be at least as new as what was found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Freshness {
    /// It is from the copy itself, so what was written before it is there too.
    Copy,
    /// The copy is behind.
    AheadOfCopy,
}

/// Why a request has no credential, as the log tells it.
pub fn without_credential(none: NoCredential) -> Visitor {
    match none {
        NoCredential::NotSent => Visitor::Anonymous,
        NoCredential::Refused => Visitor::Rejected(Rejection::Handle),
        NoCredential::TwoSessions => Visitor::Rejected(Rejection::TwoSessions),
        NoCredential::OtherProvider => Visitor::Rejected(Rejection::OtherProvider),
    }
}

impl Gather<'_> {
    /// Who a verified handle stands for. Errors say that nobody knows just now, which is not the
    /// same as nobody.
    pub async fn visitor(&self, handle: &Handle) -> Result<Visitor, LookupError> {
        let data = self.replica.data();
        let data = data.as_deref();
        match self.named(data, handle).await? {
            Named::Nothing => Ok(Visitor::Rejected(Rejection::Gone)),
            Named::ServiceAccount(account, freshness) => {
                self.service_account(data, account, freshness).await
            }
            Named::Session(session, freshness) => self.session(data, session, freshness).await,
        }
    }

    /// Who a session of the copy stands for.
    pub async fn known_session(
        &self,
        data: &Data,
        session: Versioned<Session>,
    ) -> Result<Visitor, LookupError> {
        self.session(Some(data), session, Freshness::Copy).await
    }

    /// Who a session stands for that was just written, and may not be in the copy yet.
    pub async fn made_session(&self, made: &Made) -> Result<Visitor, LookupError> {
        let data = self.replica.data();
        if has_ended(made.session.value.valid_until, self.now) {
            return Ok(Visitor::Rejected(Rejection::Expired));
        }
        let user = Some(made.user.clone());
        let id = Arc::clone(&made.session.value.id);
        let user_id = Arc::clone(&made.session.value.user_id);
        let mut person = self.person_of(data.as_deref(), id, user_id, user).await?;
        person.valid_until = made.session.value.valid_until;
        person.versions.session = made.session.version;
        person.kind = PersonKind::Session {
            own: Arc::clone(&made.session.value),
            impersonated: None,
        };
        Ok(Visitor::Person(Box::new(person)))
    }

    async fn named(&self, data: Option<&Data>, handle: &Handle) -> Result<Named, LookupError> {
        let id = handle.id.as_str();
        if let Some(data) = data {
            if let Some(session) = data.sessions.get(id) {
                if !is_behind(data, &session, handle) {
                    return Ok(Named::Session(session, Freshness::Copy));
                }
            } else if let Some(account) = data.service_accounts.get(id) {
                return Ok(Named::ServiceAccount(account, Freshness::Copy));
            } else if data.was_deleted(id) {
                return Ok(Named::Nothing);
            }
        }
        if let Some(record) = self
            .ask(Wanted::by_handle(record_type::SESSION, handle))
            .await?
        {
            let session = decoded(&record, |r| Session::from_record(r, self.keep_tokens))?;
            return Ok(Named::Session(session, Freshness::AheadOfCopy));
        }
        // A handle that is bound to a provider is never a service account's.
        if handle.idp_id.is_empty()
            && let Some(record) = self
                .ask(Wanted::by_handle(record_type::SERVICE_ACCOUNT, handle))
                .await?
        {
            let account = decoded(&record, ServiceAccount::from_record)?;
            return Ok(Named::ServiceAccount(account, Freshness::AheadOfCopy));
        }
        Ok(Named::Nothing)
    }

    async fn session(
        &self,
        data: Option<&Data>,
        session: Versioned<Session>,
        freshness: Freshness,
    ) -> Result<Visitor, LookupError> {
        if has_ended(session.value.valid_until, self.now) {
            return Ok(Visitor::Rejected(Rejection::Expired));
        }
        let impersonated = match &session.value.impersonates {
            None => None,
            Some(id) => {
                let sessions = data.map(|data| &data.sessions);
                let decode = |r: &Record| Session::from_record(r, self.keep_tokens);
                let found = self
                    .record(sessions, record_type::SESSION, id, decode)
                    .await?;
                match found {
                    None => return Ok(Visitor::Rejected(Rejection::Gone)),
                    Some(other) if has_ended(other.value.valid_until, self.now) => {
                        return Ok(Visitor::Rejected(Rejection::Expired));
                    }
                    found => found,
                }
            }
        };
        let effective = impersonated.as_ref().unwrap_or(&session);
        let limits = [session.value.valid_until, effective.value.valid_until];
        let user_id = Arc::clone(&effective.value.user_id);
        let mut person = self
            .person(data, Arc::clone(&session.value.id), user_id, freshness)
            .await?;
        person.valid_until = limits.into_iter().flatten().min();
        person.versions.session = session.version;
        person.versions.impersonated = impersonated.as_ref().map_or(0, |other| other.version);
        person.kind = PersonKind::Session {
            own: session.value,
            impersonated: impersonated.map(|other| other.value),
        };
        Ok(Visitor::Person(Box::new(person)))
    }

    async fn service_account(
        &self,
        data: Option<&Data>,
        account: Versioned<ServiceAccount>,
        freshness: Freshness,
    ) -> Result<Visitor, LookupError> {
        let Versioned { version, value } = account;
        if has_ended(value.valid_until, self.now) {
            return Ok(Visitor::Rejected(Rejection::Expired));
        }
        let (id, user_id) = (Arc::clone(&value.id), Arc::clone(&value.user_id));
        let mut person = self.person(data, id, user_id, freshness).await?;
        person.valid_until = value.valid_until;
        person.versions.session = version;
        Ok(Visitor::Person(Box::new(person)))
    }

    /// User, directory entry and groups; the caller adds the session.
    async fn person(
        &self,
        data: Option<&Data>,
        id: Arc<str>,
        user_id: Arc<str>,
        freshness: Freshness,
    ) -> Result<Person, LookupError> {
        let copy = data.filter(|_| freshness == Freshness::Copy);
        let user = match copy {
            // Users are written before what names them, so a copy without one is an answer: a
            // service account need not have one, and works while the databroker is away.
            Some(data) if data.lacks_user(&user_id) && !self.replica.is_split() => None,
            copy => {
                let users = copy.map(|data| &data.users);
                self.record(users, record_type::USER, &user_id, User::from_record)
                    .await?
            }
        };
        self.person_of(data, id, user_id, user).await
    }

    async fn person_of(
        &self,
        data: Option<&Data>,
        id: Arc<str>,
        user_id: Arc<str>,
        user: Option<Versioned<User>>,
    ) -> Result<Person, LookupError> {
        // Nobody but another writer makes directory entries, so a complete copy without one is
        // an answer.
        let directory = if let Some(data) = data {
            data.directory_users.get(&user_id)
        } else {
            let kind = record_type::DIRECTORY_USER;
            self.record(None, kind, &user_id, DirectoryUser::from_record)
                .await?
        };
        let group_names = match (&directory, data) {
            (Some(directory), Some(data)) => directory
                .value
                .group_ids
                .iter()
                .map(|id| {
                    let group = data.directory_groups.get(id);
                    group
                        .map(|group| group.value.name.clone())
                        .unwrap_or_default()
                })
                .collect(),
            _ => Vec::new(),
        };
        Ok(Person {
            id,
            kind: PersonKind::ServiceAccount,
            user_id,
            versions: PersonVersions {
                data_set: data.map_or(0, |data| data.server_version),
                user: user.as_ref().map_or(0, |user| user.version),
                directory: directory.as_ref().map_or(0, |directory| directory.version),
                groups: data.map_or(0, Data::groups_version),
                ..PersonVersions::default()
            },
            user: user.map(|user| user.value),
            directory: directory.map(|directory| directory.value),
            group_names,
            devices: Vec::new(),
            valid_until: None,
        })
    }

    /// Devices that the person's session has proved to hold, with their enrollment.
    pub async fn devices(&self, person: &Person) -> Result<Vec<ProvenDevice>, LookupError> {
        const MOST: usize = 8;
        let mut proven = Vec::new();
        let credentials = person
            .session()
            .into_iter()
            .flat_map(|session| &session.devices);
        for device in credentials.take(MOST) {
            let Some(credential_id) = &device.credential_id else {
                continue;
            };
            let recent = |kind, id| Box::pin(self.replica.recent(kind, id, self.within));
            let Some(credential) = recent(record_type::DEVICE_CREDENTIAL, credential_id).await?
            else {
                continue;
            };
            let credential: device::Credential = message(&credential)?;
            let enrollment =
                recent(record_type::DEVICE_ENROLLMENT, &credential.enrollment_id).await?;
            let approved = match enrollment {
                None => false,
                Some(record) => {
                    let enrollment: device::Enrollment = message(&record)?;
                    !enrollment.approved_by.is_empty()
                }
            };
            proven.push(ProvenDevice {
                type_id: device.type_id.clone(),
                credential_id: credential_id.clone(),
                approved,
            });
        }
        Ok(proven)
    }

    /// Records that a policy asks for: of each type the one with the user's id, else the one
    /// whose network holds the client's address. Only payloads that are plain objects can be read.
    pub async fn records(
        &self,
        types: &[String],
        user_id: Option<&str>,
        client_address: IpAddr,
    ) -> Result<BTreeMap<String, Value>, LookupError> {
        let mut found = BTreeMap::new();
        for kind in types {
            let of_user = match user_id {
                Some(id) => Box::pin(self.replica.recent(kind, id, self.within)).await?,
                None => None,
            };
            let record = match of_user {
                Some(record) => Some(record),
                None => {
                    self.replica
                        .of_address(kind, client_address, self.within)
                        .await?
                }
            };
            if let Some(value) = record.and_then(|record| records::object(&record)) {
                found.insert(kind.clone(), value);
            }
        }
        Ok(found)
    }

    /// A record of the copy, else the databroker's.
    async fn record<T>(
        &self,
        copy: Option<&Table<T>>,
        kind: &'static str,
        id: &str,
        decode: impl Fn(&Record) -> Result<T, RecordError>,
    ) -> Result<Option<Versioned<T>>, LookupError> {
        if id.is_empty() {
            return Ok(None);
        }
        if let Some(found) = copy.and_then(|table| table.get(id)) {
            return Ok(Some(found));
        }
        match self.ask(Wanted::new(kind, id)).await? {
            Some(record) => decoded(&record, decode).map(Some),
            None => Ok(None),
        }
    }

    async fn ask(&self, wanted: Wanted) -> Result<Option<Record>, LookupError> {
        // Rare, and much larger than everything around it.
        Box::pin(self.replica.get(wanted, self.within)).await
    }
}

/// The handle was made for a newer state of the session than the copy has. Versions of different
/// data sets can't be compared.
fn is_behind(data: &Data, session: &Versioned<Session>, handle: &Handle) -> bool {
    handle.server_version == data.server_version && session.version < handle.record_version
}

fn has_ended(valid_until: Option<Timestamp>, now: Timestamp) -> bool {
    valid_until.is_some_and(|end| end <= now)
}

fn decoded<T>(
    record: &Record,
    decode: impl Fn(&Record) -> Result<T, RecordError>,
) -> Result<Versioned<T>, LookupError> {
    let value = decode(record).map_err(|error| LookupError::Record(error.to_string()))?;
    Ok(Versioned {
        version: record.version,
        value: Arc::new(value),
    })
}

fn message<M: prost::Message + Default>(record: &Record) -> Result<M, LookupError> {
    let data = record
        .data
        .as_ref()
        .map(|data| data.value.as_slice())
        .unwrap_or_default();
    M::decode(data).map_err(|error| LookupError::Record(error.to_string()))
}
