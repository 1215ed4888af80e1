//! Which parts of the process are ready, since when, and why not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use tokio::sync::watch;

/// The parts of a process; clones share the same set.
#[derive(Debug, Clone)]
pub struct Parts {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Counts changes, so that others can wait for the next one.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    parts: BTreeMap<String, Part>,
    next_guard: u64,
    started: bool,
}

#[derive(Debug)]
struct Part {
    /// It was needed at some time.
    required: bool,
    /// Guards that are alive.
    guards: BTreeMap<u64, Held>,
    /// It has been ready, or has said what it waits for.
    known: bool,
    since: Timestamp,
    attributes: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Held {
    /// The process is not ready because of it.
    blocks: bool,
    /// `None`: still starting.
    reason: Option<String>,
}

/// A part that is not ready. Dropping it makes the part ready.
#[derive(Debug)]
#[must_use = "dropping the guard makes the part ready at once"]
pub struct NotReady {
    parts: Parts,
    name: String,
    id: u64,
}

/// One part as `/status` tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartStatus {
    /// `UNKNOWN` while starting, else `RUNNING` (or `TERMINATING` while the process drains).
    pub status: &'static str,
    /// Whether the process is ready only together with this part.
    #[serde(skip)]
    pub required: bool,
    /// When it came into this state (RFC 3339).
    #[serde(serialize_with = "as_text")]
    pub since: Timestamp,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Facts that the part tells about itself.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

fn as_text<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

impl PartStatus {
    /// No guard is held for it.
    pub fn is_ready(&self) -> bool {
        self.status == "RUNNING" && self.error.is_none()
    }
}

impl Default for Parts {
    fn default() -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                changes: watch::Sender::new(0),
            }),
        }
    }
}

impl Parts {
    /// See [`super::Lifecycle::not_ready`].
    pub fn not_ready(&self, name: &str) -> NotReady {
        self.hold(name, true, None)
    }

    /// See [`super::Lifecycle::degraded`].
    pub fn degraded(&self, name: &str, reason: &str) -> NotReady {
        self.hold(name, false, Some(reason.to_owned()))
    }

    /// Sets a fact that `/status` shows with the part, such as a configuration's checksum.
    pub fn tell(&self, name: &str, attribute: &str, value: &str) {
        self.change(|state| {
            let part = state.part(name);
            part.attributes
                .insert(attribute.to_owned(), value.to_owned());
        });
    }

    /// Replaces all facts of the part.
    pub fn tell_all(&self, name: &str, attributes: BTreeMap<String, String>) {
        self.change(|state| state.part(name).attributes = attributes);
    }

    /// No required part holds out.
    pub fn all_ready(&self) -> bool {
        let state = self.lock();
        state
            .parts
            .values()
            .all(|part| part.guards.values().all(|held| !held.blocks))
    }

    /// Nobody holds a guard for any of `names`, required or not. A name that was never seen
    /// is not ready.
    pub fn ready(&self, names: &[String]) -> bool {
        let state = self.lock();
        names.iter().all(|name| {
            state
                .parts
                .get(name)
                .is_some_and(|part| part.guards.is_empty())
        })
    }

    /// Every required part has been ready once, or has said what it waits for.
    pub fn started(&self) -> bool {
        self.lock().started
    }

    /// Changes whenever a part does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Every part that was ever named.
    pub fn list(&self) -> BTreeMap<String, PartStatus> {
        let state = self.lock();
        let parts = state.parts.iter();
        parts
            .map(|(name, part)| (name.clone(), part.status()))
            .collect()
    }

    fn hold(&self, name: &str, blocks: bool, reason: Option<String>) -> NotReady {
        let id = self.change(|state| {
            let id = state.next_guard;
            state.next_guard += 1;
            let part = state.part(name);
            if part.guards.is_empty() {
                part.since = Timestamp::now();
            }
            part.required |= blocks;
            part.known |= reason.is_some();
            part.guards.insert(id, Held { blocks, reason });
            id
        });
        NotReady {
            parts: self.clone(),
            name: name.to_owned(),
            id,
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = {
            let mut state = self.lock();
            let result = change(&mut state);
            let started = state
                .parts
                .values()
                .all(|part| !part.required || part.known);
            state.started |= started && !state.parts.is_empty();
            result
        };
        self.shared.changes.send_modify(|count| *count += 1);
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn part(&mut self, name: &str) -> &mut Part {
        self.parts.entry(name.to_owned()).or_insert_with(|| Part {
            required: false,
            guards: BTreeMap::new(),
            known: false,
            since: Timestamp::now(),
            attributes: BTreeMap::new(),
        })
    }
}

impl Part {
    fn status(&self) -> PartStatus {
        let reason = self
            .guards
            .values()
            .rev()
            .find_map(|held| held.reason.as_ref());
        let starting = !self.guards.is_empty() && reason.is_none() && !self.known;
        PartStatus {
            status: if starting { "UNKNOWN" } else { "RUNNING" },
            required: self.required,
            since: self.since,
            error: match reason {
                Some(reason) => Some(reason.clone()),
                None if self.guards.is_empty() || starting => None,
                None => Some("not ready".to_owned()),
            },
            attributes: self.attributes.clone(),
        }
    }
}

impl NotReady {
    /// Tells what the part waits for; may be called again with another reason.
    pub fn because(&self, reason: &str) {
        self.parts.change(|state| {
            let part = state.part(&self.name);
            part.known = true;
            if let Some(told) = part.guards.get_mut(&self.id) {
                told.reason = Some(reason.to_owned());
            }
        });
    }

    /// The part is ready; the same as dropping the guard.
    pub fn ready(self) {}
}

impl Drop for NotReady {
    fn drop(&mut self) {
        self.parts.change(|state| {
            let part = state.part(&self.name);
            part.guards.remove(&self.id);
            if part.guards.is_empty() {
                part.known = true;
                part.since = Timestamp::now();
            }
        });
    }
}
