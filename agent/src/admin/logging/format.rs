//! An event as one line: tab-separated for people, JSON for machines, both with ztunnel's keys.
//!
//! A peer decides what stands in some fields, so a value can never end its line or pass for another field.

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
        let mut message = Message(String::new());
        event.record(&mut message);
        if metadata.target() == WHOLE_LINE {
            return writeln!(writer, "{}", Unquoted(&message.0));
        }
        let mut scope = metadata.target().to_owned();
        for span in context.event_scope().into_iter().flat_map(Scope::from_root) {
            write!(scope, ":{}", span.name())?;
            if let Some(fields) = span.extensions().get::<FormattedFields<PlainFields>>()
                && !fields.is_empty()
            {
                write!(scope, "{{{fields}}}")?;
            }
        }
        let head = Head {
            level: level(*metadata.level()),
            time: time(),
            scope,
            message: message.0,
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

/// RFC 3339 in UTC with microseconds.
fn time() -> String {
    format!("{:.6}", Timestamp::now())
}

struct Head {
    level: &'static str,
    time: String,
    scope: String,
    message: String,
}

impl Head {
    fn write_plain(&self, writer: &mut Writer<'_>, event: &Event<'_>) -> fmt::Result {
        write!(
            writer,
            "{}\t{}\t{}\t{}",
            self.time,
            self.level,
            self.scope,
            Unquoted(&self.message)
        )?;
        let mut fields = Plain::new(writer.by_ref(), "\t");
        event.record(&mut fields);
        fields.result?;
        writeln!(writer)
    }

    fn write_json(&self, writer: &mut Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = Vec::with_capacity(512);
        self.serialize(event, &mut line)
            .map_err(|_unserializable| fmt::Error)?;
        let line = std::str::from_utf8(&line).map_err(|_not_text| fmt::Error)?;
        writeln!(writer, "{line}")
    }

    fn serialize(&self, event: &Event<'_>, line: &mut Vec<u8>) -> serde_json::Result<()> {
        let mut serializer = serde_json::Serializer::new(line);
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("level", self.level)?;
        map.serialize_entry("time", &self.time)?;
        map.serialize_entry("scope", &self.scope)?;
        map.serialize_entry("message", &self.message)?;
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
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = Plain::new(writer, "");
        fields.record(&mut visitor);
        visitor.result
    }
}

struct Plain<'writer> {
    writer: Writer<'writer>,
    separator: &'static str,
    /// A value's text, until it is known whether it needs quotes.
    text: String,
    result: fmt::Result,
}

impl<'writer> Plain<'writer> {
    fn new(writer: Writer<'writer>, separator: &'static str) -> Self {
        Self {
            writer,
            separator,
            text: String::new(),
            result: Ok(()),
        }
    }

    /// Writes a field with what `value` writes. In pieces and not by `write!`: every connection has two lines of some
    /// fifteen fields.
    fn field(
        &mut self,
        field: &Field,
        value: impl FnOnce(&mut Writer<'writer>, &mut String) -> fmt::Result,
    ) {
        if self.result.is_err() || is_message(field) {
            return;
        }
        let separator = std::mem::replace(&mut self.separator, " ");
        let (writer, text) = (&mut self.writer, &mut self.text);
        self.result = [separator, field.name(), "="]
            .iter()
            .try_for_each(|piece| writer.write_str(piece))
            .and_then(|()| value(writer, text));
    }
}

impl Visit for Plain<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field, |writer, text| {
            text.clear();
            write!(text, "{value:?}")?;
            if text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"') {
                return write!(writer, "{text:?}");
            }
            writer.write_str(text)
        });
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field, |writer, _text| quoted(writer, value));
    }
}

/// As `{:?}`, which looks at each character of a name that needs no escape.
fn quoted(writer: &mut Writer<'_>, value: &str) -> fmt::Result {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
    if !value.bytes().all(is_plain) {
        return write!(writer, "{value:?}");
    }
    writer.write_char('"')?;
    writer.write_str(value)?;
    writer.write_char('"')
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
