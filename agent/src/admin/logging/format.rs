//! An event as one line: tab-separated for people, JSON for machines, both with ztunnel's keys.
//!
//! A peer decides what stands in some fields, so a value can never end its line or pass for another field.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt::{self, Write as _};

use clap::ValueEnum;
use jiff::Timestamp;
use serde::ser::{SerializeMap, Serializer as _};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::registry::Scope;

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// `time<TAB>level<TAB>scope[:span]<TAB>message<TAB>key=value key=value`.
    #[default]
    Plain,
    /// One object per line: `level`, `time`, `scope`, `message`, then the fields.
    Json,
}

/// Events of this target are lines already: an access log in a form that other programs read.
const WHOLE_LINE: &str = "access::line";

/// Formats events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line(pub(super) LogFormat);

impl<S> FormatEvent<S, PlainFields> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, PlainFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        if metadata.target() == WHOLE_LINE {
            let mut line = Message(String::new());
            event.record(&mut line);
            return writeln!(writer, "{}", Unquoted(&line.0));
        }
        let mut scope = Cow::Borrowed(metadata.target());
        for span in context.event_scope().into_iter().flat_map(Scope::from_root) {
            let scope = scope.to_mut();
            write!(scope, ":{}", span.name())?;
            if let Some(fields) = span.extensions().get::<FormattedFields<PlainFields>>()
                && !fields.is_empty()
            {
                write!(scope, "{{{fields}}}")?;
            }
        }
        let head = Head {
            level: level(*metadata.level()),
            time: Timestamp::now(),
            scope: &scope,
        };
        match self.0 {
            LogFormat::Plain => head.write_plain(&mut writer, event),
            LogFormat::Json => head.write_json(&mut writer, event),
        }
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

struct Head<'a> {
    level: &'static str,
    /// Written as RFC 3339 in UTC with microseconds.
    time: Timestamp,
    scope: &'a str,
}

thread_local! {
    /// What [`Head::write_plain`] puts together, kept: every connection has a line of some fifteen fields.
    static PLAIN: RefCell<Plain> = RefCell::default();
}

impl Head<'_> {
    fn write_plain(&self, writer: &mut Writer<'_>, event: &Event<'_>) -> fmt::Result {
        PLAIN.with(|plain| {
            // Taken out, since a value's own `Debug` may log.
            let mut plain = plain.take();
            plain.clear();
            event.record(&mut plain);
            let written = self.write_parts(writer, &plain);
            PLAIN.replace(plain);
            written
        })
    }

    fn write_parts(&self, writer: &mut Writer<'_>, plain: &Plain) -> fmt::Result {
        plain.check()?;
        let Self { level, time, scope } = self;
        let message = Unquoted(&plain.message);
        write!(writer, "{time:.6}\t{level}\t{scope}\t{message}")?;
        if !plain.fields.is_empty() {
            writer.write_char('\t')?;
        }
        writer.write_str(&plain.fields)?;
        writer.write_char('\n')
    }

    fn write_json(&self, writer: &mut Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = Vec::with_capacity(512);
        self.serialize(event, &mut line)
            .map_err(|_unserializable| fmt::Error)?;
        let line = std::str::from_utf8(&line).map_err(|_not_text| fmt::Error)?;
        writeln!(writer, "{line}")
    }

    fn serialize(&self, event: &Event<'_>, line: &mut Vec<u8>) -> serde_json::Result<()> {
        let mut message = Message(String::new());
        event.record(&mut message);
        let mut serializer = serde_json::Serializer::new(line);
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("level", self.level)?;
        map.serialize_entry("time", &format_args!("{:.6}", self.time))?;
        map.serialize_entry("scope", self.scope)?;
        map.serialize_entry("message", &message.0)?;
        let mut fields = Json {
            map: &mut map,
            result: Ok(()),
        };
        event.record(&mut fields);
        fields.result?;
        map.end()
    }
}

/// Picks the message out of an event's fields.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if is_message(field) {
            self.0 = format!("{value:?}");
        }
    }
}

fn is_message(field: &Field) -> bool {
    field.name() == "message"
}

/// Formats the fields of spans as those of plain events.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlainFields;

impl<'writer> FormatFields<'writer> for PlainFields {
    fn format_fields<R: RecordFields>(
        &self,
        mut writer: Writer<'writer>,
        fields: R,
    ) -> fmt::Result {
        let mut plain = Plain::default();
        fields.record(&mut plain);
        plain.check()?;
        writer.write_str(&plain.fields)
    }
}

/// An event's parts as plain text.
#[derive(Default)]
struct Plain {
    message: String,
    /// `key=value key=value`.
    fields: String,
    has_failed: bool,
}

impl Plain {
    fn clear(&mut self) {
        self.message.clear();
        self.fields.clear();
        self.has_failed = false;
    }

    fn check(&self) -> fmt::Result {
        if self.has_failed {
            return Err(fmt::Error);
        }
        Ok(())
    }

    fn begin(&mut self, field: &Field) {
        if !self.fields.is_empty() {
            self.fields.push(' ');
        }
        self.fields.push_str(field.name());
        self.fields.push('=');
    }
}

impl Visit for Plain {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if is_message(field) {
            self.has_failed |= write!(self.message, "{value:?}").is_err();
            return;
        }
        self.begin(field);
        let start = self.fields.len();
        self.has_failed |= write!(self.fields, "{value:?}").is_err();
        let stands_alone = |byte: u8| byte.is_ascii_graphic() && byte != b'"';
        if !self.fields.as_bytes()[start..]
            .iter()
            .copied()
            .all(stands_alone)
        {
            let value = self.fields.split_off(start);
            self.has_failed |= self.value(&value).is_err();
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.begin(field);
        self.has_failed |= self.quoted(value).is_err();
    }
}

impl Plain {
    /// A value that is not plain ASCII throughout.
    fn value(&mut self, value: &str) -> fmt::Result {
        if value.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"') {
            return write!(self.fields, "{value:?}");
        }
        self.fields.write_str(value)
    }

    /// As `{:?}`, which looks at each character of a name that needs no escape.
    fn quoted(&mut self, value: &str) -> fmt::Result {
        let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
        if !value.bytes().all(is_plain) {
            return write!(self.fields, "{value:?}");
        }
        self.fields.push('"');
        self.fields.push_str(value);
        self.fields.push('"');
        Ok(())
    }
}

/// A message: constant in our own code, but not in every library's.
struct Unquoted<'a>(&'a str);

impl fmt::Display for Unquoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.contains(char::is_control) {
            return f.write_str(self.0);
        }
        self.0.chars().try_for_each(|c| {
            if c.is_control() {
                write!(f, "{}", c.escape_default())
            } else {
                f.write_char(c)
            }
        })
    }
}

struct Json<'a, M: SerializeMap> {
    map: &'a mut M,
    result: Result<(), M::Error>,
}

impl<M: SerializeMap> Json<'_, M> {
    fn field(&mut self, field: &Field, value: &(impl serde::Serialize + ?Sized)) {
        if self.result.is_ok() && !is_message(field) {
            self.result = self.map.serialize_entry(field.name(), value);
        }
    }
}

impl<M: SerializeMap> Visit for Json<'_, M> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field, &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.field(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field, &value);
    }
}
