//! One JSON object a line on standard output.
//!
//! Members: `level`, `time` (RFC 3339), `service`, `message`, then the fields of the spans around
//! the event and its own, flat. An underscore in a field's name is written as a dash, so
//! `request_id` in code is `request-id` in the log. `service` is a field of that name if there
//! is one, else it follows from the crate or room that wrote the line.
//!
//! Lines go through a bounded queue to a thread that writes them, so that a reader that is stuck
//! never stops a request; what does not fit is counted and told later.

use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::{LogLevel, LogOptions};

/// Lines waiting for the writer.
const QUEUE: usize = 8192;
/// How long the end of the process waits for the last lines.
const FLUSH: Duration = Duration::from_secs(2);

/// The log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Somebody set another subscriber before.
    #[error("logging is already set up in this process")]
    AlreadySet,
    /// No thread for the writer.
    #[error("cannot start the thread that writes the log")]
    Thread(#[source] std::io::Error),
}

/// From which level on lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Levels {
    /// `log_level`
    pub process: LevelFilter,
    /// `proxy_log_level`: the data plane's.
    pub proxy: LevelFilter,
}

impl Default for Levels {
    fn default() -> Self {
        Self {
            process: LevelFilter::INFO,
            proxy: LevelFilter::INFO,
        }
    }
}

impl From<&LogOptions> for Levels {
    fn from(options: &LogOptions) -> Self {
        let filter = |level| match level {
            LogLevel::Trace => LevelFilter::TRACE,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Off => LevelFilter::OFF,
        };
        Self {
            process: filter(options.level),
            proxy: filter(options.proxy_level),
        }
    }
}

impl Levels {
    fn targets(self) -> Targets {
        // Libraries are of interest for what goes wrong, and one level below ours when debugging.
        let libraries = match self.process {
            LevelFilter::TRACE => LevelFilter::DEBUG,
            LevelFilter::DEBUG => LevelFilter::INFO,
            other => other.min(LevelFilter::WARN),
        };
        Targets::new()
            .with_default(libraries)
            .with_target("postern", self.process)
            .with_target("postern_proxy", self.proxy)
    }
}

/// Changes the levels of the running log; it does not keep the log alive.
#[derive(Clone)]
pub struct LevelSwitch(reload::Handle<Targets, Registry>);

impl LevelSwitch {
    /// Takes new levels over at once.
    pub fn set(&self, levels: Levels) {
        // Fails only when the subscriber is gone, and then there is nothing to set.
        let _ = self.0.reload(levels.targets());
    }
}

impl fmt::Debug for LevelSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LevelSwitch").finish_non_exhaustive()
    }
}

/// The running log. Keep it until the process ends: dropping it writes what still waits.
#[must_use = "dropping the log ends it"]
pub struct Log {
    levels: reload::Handle<Targets, Registry>,
    queue: Queue,
    ended: Receiver<()>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

impl Log {
    /// Starts logging for this process, panics included. `service` names the process where
    /// nothing closer is known, such as `all`.
    pub fn start(service: &str, levels: Levels) -> Result<Self, LogError> {
        let (queue, ended) = Queue::start(std::io::stdout())?;
        let (filter, levels) = reload::Layer::new(levels.targets());
        let lines = JsonLines {
            queue: queue.clone(),
            service: service.into(),
        };
        let subscriber = Registry::default().with(lines.with_filter(filter));
        tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::AlreadySet)?;
        std::panic::set_hook(Box::new(|panic| {
            let at = panic
                .location()
                .map(ToString::to_string)
                .unwrap_or_default();
            let cause = crate::lifecycle::panic_text(panic.payload());
            tracing::error!(at, cause, "panic");
        }));
        Ok(Self {
            levels,
            queue,
            ended,
        })
    }

    /// Changes the levels of the running log.
    pub fn levels(&self) -> LevelSwitch {
        LevelSwitch(self.levels.clone())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.queue.end();
        let _ = self.ended.recv_timeout(FLUSH);
    }
}

enum Line {
    Text(Vec<u8>),
    End,
}

#[derive(Clone)]
struct Queue {
    lines: SyncSender<Line>,
    lost: Arc<AtomicU64>,
}

impl Queue {
    fn start(to: impl Write + Send + 'static) -> Result<(Self, Receiver<()>), LogError> {
        let (lines, waiting) = sync_channel(QUEUE);
        let (done, ended) = sync_channel(1);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || {
                write_lines(&waiting, &counted, to);
                let _ = done.send(());
            })
            .map_err(LogError::Thread)?;
        Ok((Self { lines, lost }, ended))
    }

    fn push(&self, line: Vec<u8>) {
        if let Err(TrySendError::Full(_)) = self.lines.try_send(Line::Text(line)) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn end(&self) {
        // When the queue is full, the writer is stuck anyway.
        let _ = self.lines.try_send(Line::End);
    }
}

/// Writes what waits, flushing whenever nothing more does.
fn write_lines(waiting: &Receiver<Line>, lost: &AtomicU64, to: impl Write) {
    let mut to = std::io::BufWriter::with_capacity(64 * 1024, to);
    while let Ok(mut line) = waiting.recv() {
        loop {
            let Line::Text(text) = line else {
                let _ = to.flush();
                return;
            };
            // Standard output is gone: there is nobody left to tell.
            let _ = to.write_all(&text);
            match waiting.try_recv() {
                Ok(next) => line = next,
                Err(_) => break,
            }
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let time = Timestamp::now();
            let _ = writeln!(
                to,
                r#"{{"level":"warn","time":"{time}","message":"log lines lost: the reader is too slow","lost":{lost}}}"#
            );
        }
        let _ = to.flush();
    }
}

struct JsonLines {
    queue: Queue,
    service: Arc<str>,
}

/// Fields in the order they were given; a later one of the same name replaces the earlier.
#[derive(Default, Clone)]
struct Fields {
    message: Option<String>,
    others: Vec<(String, Value)>,
}

impl Fields {
    fn set(&mut self, name: &str, value: Value) {
        let name = name.strip_prefix("r#").unwrap_or(name).replace('_', "-");
        match self.others.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.others.push((name, value)),
        }
    }
}

/// A field of this name holds a JSON object as text; its members become fields of the line.
/// For records whose names and types are not known at compile time, such as access logs.
pub const OBJECT_FIELD: &str = "object";

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field.name(), Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field.name(), Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field.name(), Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field.name(), Value::from(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = Some(value.to_owned()),
            OBJECT_FIELD => match serde_json::from_str(value) {
                Ok(Value::Object(members)) => {
                    for (name, value) in members {
                        self.others.push((name, value));
                    }
                }
                _ => self.set(OBJECT_FIELD, Value::from(value)),
            },
            name => self.set(name, Value::from(value)),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.set(field.name(), Value::from(chain(value)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = Some(text);
        } else {
            self.set(field.name(), Value::from(text));
        }
    }
}

/// An error and its causes in one line: `what: because: because`.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl<S> Layer<S> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context
            .event_scope(event)
            .into_iter()
            .flat_map(tracing_subscriber::registry::Scope::from_root)
        {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                fields.others.extend(of_span.others.iter().cloned());
            }
        }
        let mut own = Fields::default();
        event.record(&mut own);
        for (name, value) in own.others {
            match fields.others.iter_mut().find(|(known, _)| *known == name) {
                Some((_, old)) => *old = value,
                None => fields.others.push((name, value)),
            }
        }
        let service = match fields.others.iter().position(|(name, _)| name == "service") {
            Some(at) => fields.others.remove(at).1,
            None => Value::from(service(event.metadata().target(), &self.service)),
        };
        let message = own.message.unwrap_or_default();
        let level = *event.metadata().level();
        self.queue.push(line(
            level,
            Timestamp::now(),
            service,
            message,
            fields.others,
        ));
    }
}

/// `postern_authorize::decide` → `authorize`, `postern_common::config::watch` → `config`.
fn service<'a>(target: &'a str, process: &'a str) -> &'a str {
    let mut parts = target.split("::");
    match parts.next().and_then(|own| own.strip_prefix("postern_")) {
        Some("common") => parts.next().unwrap_or(process),
        Some(service) => service,
        None => process,
    }
}

fn line(
    level: Level,
    time: Timestamp,
    service: Value,
    message: String,
    fields: Vec<(String, Value)>,
) -> Vec<u8> {
    let level = match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    };
    let first = [
        ("level".to_owned(), Value::from(level)),
        ("time".to_owned(), Value::from(time.to_string())),
        ("service".to_owned(), service),
        ("message".to_owned(), Value::from(message)),
    ];
    let reserved = |name: &str| matches!(name, "level" | "time" | "message");
    let others = fields.into_iter().filter(|(name, _)| !reserved(name));
    let mut line = Vec::with_capacity(256);
    for (index, (name, value)) in first.into_iter().chain(others).enumerate() {
        line.push(if index == 0 { b'{' } else { b',' });
        line.extend_from_slice(Value::from(name).to_string().as_bytes());
        line.push(b':');
        line.extend_from_slice(value.to_string().as_bytes());
    }
    line.extend_from_slice(b"}\n");
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn lines_of(levels: Levels, act: impl FnOnce()) -> Vec<Value> {
        let sink = Sink::default();
        let (queue, ended) = Queue::start(sink.clone()).unwrap();
        let lines = JsonLines {
            queue: queue.clone(),
            service: "all".into(),
        };
        let subscriber = Registry::default().with(lines.with_filter(levels.targets()));
        tracing::subscriber::with_default(subscriber, act);
        queue.end();
        ended.recv_timeout(FLUSH).unwrap();
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn members_are_flat_and_dashed() {
        let lines = lines_of(Levels::default(), || {
            let span = tracing::info_span!("request", request_id = "r-1", status = 0);
            let _inside = span.enter();
            tracing::warn!(target: "postern_authorize::decide", status = 403_u16, "denied");
        });
        let [line] = lines.as_slice() else {
            panic!("{lines:?}")
        };
        assert_eq!(line["level"], "warn");
        assert_eq!(line["service"], "authorize");
        assert_eq!(line["message"], "denied");
        assert_eq!(line["request-id"], "r-1");
        assert_eq!(line["status"], 403);
        let time: Timestamp = line["time"].as_str().unwrap().parse().unwrap();
        assert!(time <= Timestamp::now());
    }

    #[test]
    fn an_object_becomes_fields_and_a_line_stays_one_line() {
        let lines = lines_of(Levels::default(), || {
            let object = r#"{"response-code":200,"headers":{"Accept":"*/*"},"level":"mine"}"#;
            tracing::info!(target: "postern_proxy::access_log", service = "envoy", object, "http-request");
            tracing::info!(target: "postern_common::config", path = "a\nb\"c", "read");
        });
        assert_eq!(lines[0]["service"], "envoy");
        assert_eq!(lines[0]["response-code"], 200);
        assert_eq!(lines[0]["headers"]["Accept"], "*/*");
        assert_eq!(
            lines[0]["level"], "info",
            "a field cannot take the place of a member"
        );
        assert_eq!(lines[1]["service"], "config");
        assert_eq!(lines[1]["path"], "a\nb\"c");
    }

    #[test]
    fn levels_differ_for_the_data_plane_and_for_libraries() {
        let levels = Levels {
            process: LevelFilter::DEBUG,
            proxy: LevelFilter::WARN,
        };
        let lines = lines_of(levels, || {
            tracing::debug!(target: "postern_authorize", "seen");
            tracing::info!(target: "postern_proxy::serve", "hidden");
            tracing::warn!(target: "postern_proxy::serve", "seen");
            tracing::debug!(target: "h2::proto", "hidden");
            tracing::info!(target: "h2::proto", "seen");
        });
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line["message"] == "seen"));
        let off = Levels {
            process: LevelFilter::OFF,
            proxy: LevelFilter::OFF,
        };
        assert!(lines_of(off, || tracing::error!("hidden")).is_empty());
    }

    #[test]
    fn an_error_is_told_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot reach databroker")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("connection refused"));
        assert_eq!(chain(&error), "cannot reach databroker: connection refused");
    }
}
