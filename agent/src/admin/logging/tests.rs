//! The log as bytes, and its level as administrators change it.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use tracing::{Level, debug, event, info, info_span, warn};

use super::{LevelRequest, LogFormat, build, level};

#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines that `act` causes, without their time.
fn logged(format: LogFormat, directives: &str, act: impl FnOnce()) -> Vec<String> {
    let output = Output::default();
    let (subscriber, _control, guard) = build(format, directives, output.clone()).unwrap();
    tracing::subscriber::with_default(subscriber, act);
    drop(guard);
    let bytes = output.0.lock().unwrap().clone();
    String::from_utf8(bytes)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_plain_line_is_time_level_scope_message_and_fields() {
    let lines = logged(LogFormat::Plain, "info", || {
        event!(target: "access", Level::INFO, src.addr = %"10.0.0.1:5", dst.workload = "web", bytes = 7, "done");
    });
    let (time, rest) = lines[0].split_once('\t').unwrap();
    assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
    assert_eq!(
        rest,
        "info\taccess\tdone\tsrc.addr=10.0.0.1:5 dst.workload=\"web\" bytes=7"
    );
    assert_eq!(lines.len(), 1);
}

#[test]
fn a_span_stands_behind_the_scope() {
    let lines = logged(LogFormat::Plain, "info", || {
        let _span = info_span!("inbound", pod = "web 1").entered();
        warn!(target: "t", "odd");
    });
    assert!(
        lines[0].ends_with("warn\tt:inbound{pod=\"web 1\"}\todd"),
        "{}",
        lines[0]
    );
}

#[test]
fn no_value_can_forge_a_line_or_a_field() {
    let evil = "x\n2026\tinfo\taccess\tforged\tsrc.identity=root";
    let lines = logged(LogFormat::Plain, "info", || {
        info!(target: "t", a = evil, b = %evil, c = %"x y=z", "said");
        info!(target: "t", "{evil}");
    });
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains(r#"c="x y=z""#), "{}", lines[0]);
    assert_eq!(lines[0].matches('\t').count(), 4, "{}", lines[0]);
    assert_eq!(lines[1].matches('\t').count(), 3, "{}", lines[1]);
}

#[test]
fn a_json_line_keeps_types_and_order() {
    let lines = logged(LogFormat::Json, "info", || {
        event!(target: "access", Level::INFO, src.addr = %"10.0.0.1:5", bytes = 7, fine = true, "a \"b\"");
    });
    let time = lines[0]
        .split("\"time\":\"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    assert_eq!(
        lines[0].replace(time, "T"),
        "{\"level\":\"info\",\"time\":\"T\",\"scope\":\"access\",\"message\":\"a \\\"b\\\"\",\
         \"src.addr\":\"10.0.0.1:5\",\"bytes\":7,\"fine\":true}"
    );
}

#[test]
fn the_level_filters_by_target() {
    let lines = logged(LogFormat::Plain, "warn,access=debug", || {
        debug!(target: "access", "kept");
        info!(target: "other", "dropped");
        warn!(target: "other", "kept too");
    });
    assert_eq!(lines.len(), 2, "{lines:?}");
}

#[test]
fn levels_parse_strictly() {
    for text in [
        "info",
        "INFO",
        "off",
        "info,access=debug",
        "a::b=trace",
        "",
        " info , x=warn ",
    ] {
        assert!(level::parse(text).is_ok(), "{text}");
    }
    for text in [
        "inof",
        "access=loud",
        "=info",
        "access=",
        "a b=info",
        "info;debug",
        "a=b=info",
    ] {
        assert!(level::parse(text).is_err(), "{text}");
    }
}

#[test]
fn the_level_changes_while_the_log_runs() {
    let output = Output::default();
    let (subscriber, control, guard) =
        build(LogFormat::Plain, "info,a=warn", output.clone()).unwrap();
    let apply = |query: &str| control.apply(&LevelRequest::from_query(query));
    tracing::subscriber::with_default(subscriber, || {
        assert_eq!(
            apply("").unwrap(),
            "a=warn,info",
            "nothing asked: shown only"
        );
        debug!(target: "b", "too fine");
        assert_eq!(
            apply("level=b%3Ddebug").unwrap(),
            "b=debug,a=warn,info",
            "merged"
        );
        debug!(target: "b", "first");
        assert_eq!(
            apply("level=error").unwrap(),
            "b=debug,a=warn,error",
            "the default replaced"
        );
        assert!(apply("level=nonsense").is_err());
        assert_eq!(
            apply("").unwrap(),
            "b=debug,a=warn,error",
            "an error changes nothing"
        );
        assert_eq!(apply("reset").unwrap(), "a=warn,info");
        debug!(target: "b", "too fine again");
        assert_eq!(
            apply("level=a=trace&reset=true").unwrap(),
            "a=trace,info",
            "reset, then merged"
        );
        assert_eq!(apply("reset=false").unwrap(), "a=trace,info");
    });
    drop(guard);
    let text = String::from_utf8(output.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("first"), "{text}");
}

/// Writes nothing until it is let go.
struct Stuck(std::sync::mpsc::Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Ends with an error once the test drops its sender: then everything flows.
        let _gone = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stuck_reader_holds_writers_back_instead_of_losing_lines() {
    let (release, stuck) = std::sync::mpsc::channel();
    let (subscriber, _control, guard) = build(LogFormat::Plain, "info", Stuck(stuck)).unwrap();
    let (done, finished) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || {
        tracing::subscriber::with_default(subscriber, || {
            // More than the queue holds.
            let text = "x".repeat(1000);
            for _ in 0..12_000 {
                info!(target: "t", text, "line");
            }
        });
        done.send(()).unwrap();
    });
    let patience = std::time::Duration::from_millis(300);
    assert!(
        finished.recv_timeout(patience).is_err(),
        "the queue has a bound"
    );
    drop(release);
    finished
        .recv_timeout(std::time::Duration::from_secs(20))
        .expect("writers go on");
    writer.join().unwrap();
    drop(guard);
}
