//! One copy of the databroker's records, filled by one `SyncLatest` and kept current by `Sync`.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use postern_common::authz::Revisit;
use postern_common::rpc::stubs::databroker::Record;

use crate::records::{
    DirectoryGroup, DirectoryUser, KeepTokens, RecordError, ServiceAccount, Session, User,
    record_type,
};

/// Readers take a shard for the length of one look-up; a writer holds one for one insertion. Now and
/// then that moves all that the shard has, so of a million records there should be a thousand.
const SHARDS: usize = 1024;

/// Ids of records that the feed told us are gone, at most so many.
const REMEMBERED_DELETIONS: u64 = 100_000;

/// A record and its version in the databroker's count.
#[derive(Debug)]
pub struct Versioned<T> {
    pub version: u64,
    pub value: Arc<T>,
}

impl<T> Clone for Versioned<T> {
    fn clone(&self) -> Self {
        Self {
            version: self.version,
            value: Arc::clone(&self.value),
        }
    }
}

/// Records of one type by id.
#[derive(Debug)]
pub struct Table<T> {
    /// Ids may be alike at either end, and come from outside.
    hasher: RandomState,
    shards: Box<[Shard<T>; SHARDS]>,
}

type Shard<T> = RwLock<HashTable<(Arc<str>, Versioned<T>)>>;

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            shards: Box::new(std::array::from_fn(|_| RwLock::default())),
        }
    }
}

impl<T> Table<T> {
    fn hash(&self, id: &str) -> u64 {
        self.hasher.hash_one(id)
    }

    fn shard(&self, hash: u64) -> &Shard<T> {
        let [first, ..] = &*self.shards;
        // Tables use the lowest and the highest bits. Always within, so the fallback is never taken.
        let index = usize::try_from((hash >> 40) % SHARDS as u64).unwrap_or_default();
        self.shards.get(index).unwrap_or(first)
    }

    pub fn get(&self, id: &str) -> Option<Versioned<T>> {
        let hash = self.hash(id);
        let shard = self.shard(hash).read();
        let shard = shard.unwrap_or_else(PoisonError::into_inner);
        let found = shard.find(hash, |(known, _)| **known == *id);
        found.map(|(_, record)| record.clone())
    }

    /// Stores a record unless a newer one is there already; returns what it replaced.
    fn put(&self, id: Arc<str>, record: Versioned<T>) -> Put<T> {
        let hash = self.hash(&id);
        let shard = self.shard(hash).write();
        let mut shard = shard.unwrap_or_else(PoisonError::into_inner);
        let entry = shard.entry(hash, |(known, _)| *known == id, |(id, _)| self.hash(id));
        match entry {
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                if known.1.version > record.version {
                    return Put::Older;
                }
                let (_, before) = std::mem::replace(known, (id, record));
                Put::Replaced(before.value)
            }
            Entry::Vacant(place) => {
                place.insert((id, record));
                Put::New
            }
        }
    }

    fn remove(&self, id: &str, version: u64) -> Removed<T> {
        let hash = self.hash(id);
        let shard = self.shard(hash).write();
        let mut shard = shard.unwrap_or_else(PoisonError::into_inner);
        let Ok(known) = shard.find_entry(hash, |(known, _)| **known == *id) else {
            return Removed::WasNot;
        };
        if known.get().1.version > version {
            return Removed::NewerIsThere;
        }
        let ((_, gone), _) = known.remove();
        Removed::Was(gone.value)
    }

    pub fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner).len())
            .sum()
    }
}

enum Put<T> {
    New,
    Replaced(Arc<T>),
    Older,
}

enum Removed<T> {
    Was(Arc<T>),
    WasNot,
    NewerIsThere,
}

impl<T> Removed<T> {
    fn is_gone(&self) -> bool {
        !matches!(self, Self::NewerIsThere)
    }
}

/// Everything that decisions read of the databroker.
#[derive(Debug)]
pub struct Data {
    /// Which data set this is a copy of. Versions of another one mean nothing here.
    pub server_version: u64,
    version: AtomicU64,
    pub keep_tokens: KeepTokens,
    pub sessions: Table<Session>,
    pub users: Table<User>,
    pub service_accounts: Table<ServiceAccount>,
    pub directory_users: Table<DirectoryUser>,
    pub directory_groups: Table<DirectoryGroup>,
    groups_version: AtomicU64,
    /// Sessions that take another's identity. While there are any, a change of one session
    /// may concern another.
    impersonators: AtomicUsize,
    /// Sessions and service accounts that the feed told us are gone.
    deleted: moka::sync::Cache<Arc<str>, ()>,
    /// Whether there ever was one. A first copy has none, and is spared a look-up for each record.
    any_deleted: AtomicBool,
    unreadable_users: Unreadable,
}

/// Ids of records that are there and can't be read, at most so many one by one.
const UNREADABLE: usize = 10_000;

/// Records that are missing here although there may be one.
#[derive(Debug, Default)]
struct Unreadable {
    /// Whether there ever was one; nearly always none.
    any: AtomicBool,
    ids: RwLock<HashSet<Arc<str>>>,
}

impl Unreadable {
    fn add(&self, id: &str) {
        let mut ids = self.ids.write().unwrap_or_else(PoisonError::into_inner);
        if ids.len() < UNREADABLE {
            ids.insert(id.into());
        }
        self.any.store(true, Ordering::Release);
    }

    fn remove(&self, id: &str) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let mut ids = self.ids.write().unwrap_or_else(PoisonError::into_inner);
        // When it is full, others may be unreadable that are not in it.
        if ids.len() < UNREADABLE {
            ids.remove(id);
        }
    }

    fn may_be(&self, id: &str) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let ids = self.ids.read().unwrap_or_else(PoisonError::into_inner);
        ids.len() >= UNREADABLE || ids.contains(id)
    }
}

/// What a record did to the copy.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that a decision could notice.
    None,
    Revisit(Revisit),
}

impl Data {
    pub fn new(keep_tokens: KeepTokens) -> Self {
        Self {
            server_version: 0,
            version: AtomicU64::new(0),
            keep_tokens,
            sessions: Table::default(),
            users: Table::default(),
            service_accounts: Table::default(),
            directory_users: Table::default(),
            directory_groups: Table::default(),
            groups_version: AtomicU64::new(0),
            impersonators: AtomicUsize::new(0),
            deleted: moka::sync::Cache::new(REMEMBERED_DELETIONS),
            any_deleted: AtomicBool::new(false),
            unreadable_users: Unreadable::default(),
        }
    }

    /// The newest change that is in here.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    fn advance(&self, version: u64) {
        self.version.fetch_max(version, Ordering::AcqRel);
    }

    /// A complete copy says where the changes go on. Records that came later than that were read
    /// on the way and come again.
    pub fn restart_at(&mut self, version: u64) {
        self.version = AtomicU64::new(version);
    }

    /// Counts changes of groups' names.
    pub fn groups_version(&self) -> u64 {
        self.groups_version.load(Ordering::Acquire)
    }

    /// Whether the feed said that the session or service account `id` is gone. Ids of browser
    /// sessions are never used again; those of bearer tokens may be, so a newer record clears it.
    pub fn was_deleted(&self, id: &str) -> bool {
        self.deleted.contains_key(id)
    }

    /// Whether the user `id` is known not to exist, if this copy is complete. One whose record can't
    /// be read is not.
    pub fn lacks_user(&self, id: &str) -> bool {
        // In this order: what can't be read is noted before it is taken out.
        self.users.get(id).is_none() && !self.unreadable_users.may_be(id)
    }

    /// Takes over one record of the feed. Applying one twice, or an older one late, changes nothing.
    pub fn apply(&self, record: &Record) -> Result<Change, RecordError> {
        let change = if record.deleted_at.is_some() {
            let change = self.remove(record);
            if record.r#type == record_type::USER {
                self.unreadable_users.remove(&record.id);
            }
            if change != Change::None && holds_sessions(&record.r#type) {
                self.deleted.insert(record.id.as_str().into(), ());
                self.any_deleted.store(true, Ordering::Release);
            }
            Ok(change)
        } else {
            self.store(record).inspect_err(|_| {
                // What can't be read must not decide, and its old content is worth nothing any
                // more. It is not known to be gone either: whoever needs it has to ask.
                if record.r#type == record_type::USER {
                    self.unreadable_users.add(&record.id);
                }
                self.remove(record);
            })
        };
        self.advance(record.version);
        change
    }

    fn store(&self, record: &Record) -> Result<Change, RecordError> {
        let revisit = |changed: bool, what: fn(String) -> Revisit| {
            if changed {
                Change::Revisit(what(record.id.clone()))
            } else {
                Change::None
            }
        };
        Ok(match record.r#type.as_str() {
            record_type::SESSION => {
                let session = Session::from_record(record, self.keep_tokens)?;
                let impersonates = session.impersonates.is_some();
                let changed = keep(&self.sessions, &session.id.clone(), record, session);
                if let Kept::Changed(before) = &changed {
                    let impersonated = before.as_ref().is_some_and(|s| s.impersonates.is_some());
                    self.count_impersonators(impersonated, impersonates);
                    self.is_back(&record.id);
                }
                self.session_change(&record.id, changed.is_change())
            }
            record_type::USER => {
                let user = User::from_record(record)?;
                let changed = keep(&self.users, &user.id.clone(), record, user).is_change();
                self.unreadable_users.remove(&record.id);
                revisit(changed, Revisit::User)
            }
            record_type::SERVICE_ACCOUNT => {
                let account = ServiceAccount::from_record(record)?;
                let changed =
                    keep(&self.service_accounts, &account.id.clone(), record, account).is_change();
                if changed {
                    self.is_back(&record.id);
                }
                revisit(changed, Revisit::Session)
            }
            record_type::DIRECTORY_USER => {
                let user = DirectoryUser::from_record(record)?;
                revisit(
                    keep(&self.directory_users, &user.id.clone(), record, user).is_change(),
                    Revisit::User,
                )
            }
            record_type::DIRECTORY_GROUP => {
                // Only names of groups stand here, which no open request rests on.
                let group = DirectoryGroup::from_record(record)?;
                keep(&self.directory_groups, &group.id.clone(), record, group);
                self.groups_version.fetch_add(1, Ordering::AcqRel);
                Change::None
            }
            // Types that no decision reads.
            _ => Change::None,
        })
    }

    fn is_back(&self, id: &str) {
        if self.any_deleted.load(Ordering::Acquire) {
            self.deleted.invalidate(id);
        }
    }

    /// Removes a record unless a newer one is there.
    fn remove(&self, record: &Record) -> Change {
        let (id, version) = (record.id.as_str(), record.version);
        match record.r#type.as_str() {
            record_type::SESSION => {
                let removed = self.sessions.remove(id, version);
                if let Removed::Was(gone) = &removed {
                    self.count_impersonators(gone.impersonates.is_some(), false);
                }
                self.session_change(id, removed.is_gone())
            }
            record_type::SERVICE_ACCOUNT => {
                let gone = self.service_accounts.remove(id, version).is_gone();
                self.session_change(id, gone)
            }
            record_type::USER if self.users.remove(id, version).is_gone() => {
                Change::Revisit(Revisit::User(id.to_owned()))
            }
            record_type::DIRECTORY_USER if self.directory_users.remove(id, version).is_gone() => {
                Change::Revisit(Revisit::User(id.to_owned()))
            }
            record_type::DIRECTORY_GROUP => {
                self.directory_groups.remove(id, version);
                self.groups_version.fetch_add(1, Ordering::AcqRel);
                Change::None
            }
            _ => Change::None,
        }
    }

    fn session_change(&self, id: &str, changed: bool) -> Change {
        if !changed {
            Change::None
        } else if self.impersonators.load(Ordering::Relaxed) > 0 {
            Change::Revisit(Revisit::Everything)
        } else {
            Change::Revisit(Revisit::Session(id.to_owned()))
        }
    }

    fn count_impersonators(&self, before: bool, after: bool) {
        match (before, after) {
            (false, true) => {
                self.impersonators.fetch_add(1, Ordering::Relaxed);
            }
            (true, false) => {
                self.impersonators.fetch_sub(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

fn holds_sessions(kind: &str) -> bool {
    kind == record_type::SESSION || kind == record_type::SERVICE_ACCOUNT
}

enum Kept<T> {
    Unchanged,
    Changed(Option<Arc<T>>),
}

impl<T> Kept<T> {
    fn is_change(&self) -> bool {
        matches!(self, Self::Changed(_))
    }
}

/// `id` is the value's own, so that it is kept once.
fn keep<T: PartialEq>(table: &Table<T>, id: &Arc<str>, record: &Record, value: T) -> Kept<T> {
    let value = Arc::new(value);
    let versioned = Versioned {
        version: record.version,
        value: Arc::clone(&value),
    };
    match table.put(Arc::clone(id), versioned) {
        Put::Older => Kept::Unchanged,
        Put::Replaced(before) if *before == *value => Kept::Unchanged,
        Put::Replaced(before) => Kept::Changed(Some(before)),
        Put::New => Kept::Changed(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_common::rpc::stubs::session;
    use prost::Message as _;

    fn record(version: u64, id: &str, session: &session::Session) -> Record {
        Record {
            version,
            r#type: record_type::SESSION.to_owned(),
            id: id.to_owned(),
            data: Some(prost_types::Any {
                type_url: record_type::SESSION.to_owned(),
                value: session.encode_to_vec(),
            }),
            ..Default::default()
        }
    }

    fn deletion(version: u64, id: &str) -> Record {
        Record {
            deleted_at: Some(prost_types::Timestamp::default()),
            ..record(version, id, &session::Session::default())
        }
    }

    fn user(id: &str) -> session::Session {
        session::Session {
            user_id: id.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn late_and_repeated_records_change_nothing() {
        let data = Data::new(KeepTokens::No);
        let revisit = Change::Revisit(Revisit::Session("s".into()));
        assert_eq!(data.apply(&record(5, "s", &user("new"))).unwrap(), revisit);
        assert_eq!(
            data.apply(&record(4, "s", &user("old"))).unwrap(),
            Change::None
        );
        assert_eq!(
            data.apply(&record(5, "s", &user("new"))).unwrap(),
            Change::None
        );
        assert_eq!(&*data.sessions.get("s").unwrap().value.user_id, "new");
        assert_eq!(data.apply(&deletion(3, "s")).unwrap(), Change::None);
        assert!(data.sessions.get("s").is_some());
        assert!(!data.was_deleted("s"));
        assert_eq!(data.version(), 5);
        assert_eq!(data.apply(&deletion(6, "s")).unwrap(), revisit);
        assert!(data.sessions.get("s").is_none());
        assert!(data.was_deleted("s"));
        data.apply(&record(7, "s", &user("again"))).unwrap();
        assert!(!data.was_deleted("s"));
    }

    /// Nobody waits for more of the table to be moved than one shard has.
    #[test]
    fn ids_of_any_form_are_spread_over_all_shards() {
        const EACH: usize = 10;
        let forms: [fn(usize) -> String; 4] = [
            |number| {
                format!(
                    "{:032x}",
                    0x9e37_79b9_7f4a_7c15_u128.wrapping_mul(number as u128)
                )
            },
            |number| number.to_string(),
            |number| format!("{number}@corp.test"),
            |number| format!("https://idp.corp.test/users/{number:09}/active"),
        ];
        for form in forms {
            let table = Table::default();
            for number in 0..EACH * SHARDS {
                let record = Versioned {
                    version: 1,
                    value: Arc::new(()),
                };
                table.put(form(number).into(), record);
            }
            let sizes = table.shards.iter().map(|shard| shard.read().unwrap().len());
            let largest = sizes.max().unwrap();
            // By chance alone, one of all the shards has more than twice its share.
            assert!(largest < 4 * EACH, "{largest} like {}", form(1));
            assert_eq!(table.len(), EACH * SHARDS);
        }
    }

    #[test]
    fn access_times_revisit_nothing() {
        let data = Data::new(KeepTokens::No);
        data.apply(&record(1, "s", &user("u"))).unwrap();
        let touched = session::Session {
            accessed_at: Some(prost_types::Timestamp {
                seconds: 9,
                nanos: 0,
            }),
            ..user("u")
        };
        assert_eq!(data.apply(&record(2, "s", &touched)).unwrap(), Change::None);
        assert_eq!(data.sessions.get("s").unwrap().version, 2);
    }

    #[test]
    fn impersonated_sessions_revisit_everything() {
        let data = Data::new(KeepTokens::No);
        let impersonator = session::Session {
            impersonate_session_id: Some("target".into()),
            ..user("admin")
        };
        data.apply(&record(1, "target", &user("u"))).unwrap();
        data.apply(&record(2, "admin", &impersonator)).unwrap();
        let change = data.apply(&deletion(3, "target")).unwrap();
        assert_eq!(change, Change::Revisit(Revisit::Everything));
        data.apply(&deletion(4, "admin")).unwrap();
        data.apply(&record(5, "x", &user("u"))).unwrap();
        let change = data.apply(&deletion(6, "x")).unwrap();
        assert_eq!(change, Change::Revisit(Revisit::Session("x".into())));
    }

    #[test]
    fn c85_unknown_types_are_passed_over_and_damage_decides_nothing() {
        let data = Data::new(KeepTokens::No);
        let mut unknown = record(3, "t", &user("u"));
        unknown.r#type = "type.googleapis.com/unknown.Thing".into();
        assert_eq!(data.apply(&unknown).unwrap(), Change::None);
        assert_eq!(data.version(), 3);
        data.apply(&record(4, "s", &user("u"))).unwrap();
        let mut damaged = record(5, "s", &user("u"));
        damaged.data.as_mut().unwrap().value = vec![0xff];
        assert!(data.apply(&damaged).is_err());
        assert!(data.sessions.get("s").is_none());
        assert!(!data.was_deleted("s"), "not known to be gone");
        assert_eq!(data.version(), 5);
    }

    #[test]
    fn a_user_that_cannot_be_read_is_not_known_to_be_missing() {
        let data = Data::new(KeepTokens::No);
        let of_user = |version, record: Record| Record {
            version,
            r#type: record_type::USER.to_owned(),
            ..record
        };
        let whole = |version| of_user(version, record(version, "u", &user("u")));
        let damaged = |version| {
            let mut record = whole(version);
            record.data.as_mut().unwrap().value = vec![0xff];
            record
        };
        assert!(data.lacks_user("u"));
        data.apply(&whole(1)).unwrap();
        assert!(!data.lacks_user("u"));
        data.apply(&damaged(2)).unwrap_err();
        assert!(data.users.get("u").is_none() && !data.lacks_user("u"));
        assert!(data.lacks_user("another"));
        data.apply(&whole(3)).unwrap();
        data.apply(&of_user(4, deletion(4, "u"))).unwrap();
        assert!(data.lacks_user("u"));
        data.apply(&damaged(5)).unwrap_err();
        data.apply(&of_user(6, deletion(6, "u"))).unwrap();
        assert!(data.lacks_user("u"));
    }
}
