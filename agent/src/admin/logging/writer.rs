//! The thread that writes the log, so that a worker never waits for a disk or a pipe as long as the queue
//! has room.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait; after that writers wait.
const QUEUE_LINES: usize = 10_000;

/// Lines that one system call may carry.
const BATCH_LINES: usize = 64;

/// Pause after the queue was emptied: whoever writes wakes the thread only if it waits for a first line, so that a
/// thousand connections a second cost a few hundred wake-ups and not one each. A line is at most this late.
const REST: Duration = Duration::from_millis(5);

/// How long the end of the process waits for the last lines.
const LAST_WORDS: Duration = Duration::from_secs(2);

enum Message {
    Line(Vec<u8>),
    /// Everything queued before it is to be written, then this is to be dropped.
    Flush(SyncSender<()>),
}

/// Queues lines.
#[derive(Clone, Debug)]
pub(super) struct LineSender(SyncSender<Message>);

/// Writes what is still queued when it is dropped.
#[derive(Debug)]
#[must_use = "dropping the guard at once means that the last lines may be lost"]
pub struct LogGuard(SyncSender<Message>);

/// Starts the thread. It ends with the last sender.
pub(super) fn start(output: impl Write + Send + 'static) -> io::Result<(LineSender, LogGuard)> {
    let (sender, receiver) = sync_channel(QUEUE_LINES);
    let thread = thread::Builder::new().name("log".to_owned());
    let _detached = thread.spawn(move || write_lines(&receiver, output))?;
    Ok((LineSender(sender.clone()), LogGuard(sender)))
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let (written, wait) = sync_channel(1);
        if self.0.send(Message::Flush(written)).is_ok() {
            // Written or not: a stuck pipe must not keep the process.
            let _ended = wait.recv_timeout(LAST_WORDS);
        }
    }
}

impl<'a> MakeWriter<'a> for LineSender {
    type Writer = Self;

    fn make_writer(&'a self) -> Self::Writer {
        self.clone()
    }
}

/// The formatting layer writes each event with one call.
impl Write for LineSender {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0
            .send(Message::Line(line.to_vec()))
            .map_err(|_stopped| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_lines(queue: &Receiver<Message>, mut output: impl Write) {
    let mut batch = Vec::new();
    while let Ok(first) = queue.recv() {
        let mut flushed = Vec::new();
        let mut messages = 0;
        for message in std::iter::once(first).chain(queue.try_iter().take(BATCH_LINES - 1)) {
            messages += 1;
            match message {
                Message::Line(line) => batch.extend_from_slice(&line),
                Message::Flush(done) => flushed.push(done),
            }
        }
        // A reader of the log that went away is no reason to stop the mesh; there is nobody to tell.
        let _written = output.write_all(&batch).and_then(|()| output.flush());
        batch.clear();
        drop(flushed);
        if messages < BATCH_LINES {
            thread::sleep(REST);
        }
    }
}
