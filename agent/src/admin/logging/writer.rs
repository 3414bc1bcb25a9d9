//! The thread that writes the log, so that a worker never waits for a disk or a pipe as long as the queue
//! has room.

use std::io::{self, Write};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Bytes that may wait, some five thousand lines; after that writers wait.
const QUEUE_BYTES: usize = 2 << 20;

/// Room that is kept for the next lines.
const KEPT_BYTES: usize = 64 << 10;

/// Pause after the queue was emptied: whoever writes wakes the thread only if it waits for a first line, so that a
/// thousand connections a second cost a few hundred wake-ups and not one each. A line is at most this late.
const REST: Duration = Duration::from_millis(5);

/// How long the end of the process waits for the last lines.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Lines on their way, one behind the other: a writer copies its line and is done, without an allocation of its own.
#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// The thread waits for a first line.
    filled: Condvar,
    /// Writers wait for room, the end of the process for the last line.
    written: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    /// The thread is writing what it has taken.
    is_writing: bool,
    /// Nobody writes any more: the thread ends with the last line.
    is_over: bool,
}

impl Queue {
    /// Whole even if a thread panicked while it held the lock: a line is put by one call.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, line: &[u8]) {
        let mut waiting = self.lock();
        // A line that is longer than all room has to go, too.
        while !waiting.lines.is_empty() && waiting.lines.len() + line.len() > QUEUE_BYTES {
            let woken = self.written.wait(waiting);
            waiting = woken.unwrap_or_else(PoisonError::into_inner);
        }
        let is_first = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(line);
        drop(waiting);
        if is_first {
            self.filled.notify_one();
        }
    }

    /// Exchanges what waits for `emptied`; `None` once nothing will come any more.
    fn take(&self, emptied: Vec<u8>) -> Option<Vec<u8>> {
        let mut waiting = self.lock();
        waiting.is_writing = false;
        self.written.notify_all();
        while waiting.lines.is_empty() {
            if waiting.is_over {
                return None;
            }
            let woken = self.filled.wait(waiting);
            waiting = woken.unwrap_or_else(PoisonError::into_inner);
        }
        waiting.is_writing = true;
        Some(mem::replace(&mut waiting.lines, emptied))
    }

    fn write_all(&self, mut output: impl Write) {
        let mut emptied = Vec::new();
        while let Some(mut lines) = self.take(emptied) {
            // A reader of the log that went away is no reason to stop the mesh; there is nobody to tell.
            let _written = output.write_all(&lines).and_then(|()| output.flush());
            lines.clear();
            lines.shrink_to(KEPT_BYTES);
            emptied = lines;
            thread::sleep(REST);
        }
    }
}

/// Queues lines. The thread ends with it.
#[derive(Debug)]
pub(super) struct LineSender(Arc<Queue>);

/// Writes what is still queued when it is dropped.
#[derive(Debug)]
#[must_use = "dropping the guard at once means that the last lines may be lost"]
pub struct LogGuard(Arc<Queue>);

/// Starts the thread.
pub(super) fn start(output: impl Write + Send + 'static) -> io::Result<(LineSender, LogGuard)> {
    let queue = Arc::<Queue>::default();
    let writing = Arc::clone(&queue);
    let thread = thread::Builder::new().name("log".to_owned());
    let _detached = thread.spawn(move || writing.write_all(output))?;
    Ok((LineSender(Arc::clone(&queue)), LogGuard(queue)))
}

impl Drop for LineSender {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.filled.notify_one();
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let is_under_way = |waiting: &mut Waiting| waiting.is_writing || !waiting.lines.is_empty();
        // Written or not: a stuck pipe must not keep the process.
        let _last = (self.0.written).wait_timeout_while(self.0.lock(), LAST_WORDS, is_under_way);
    }
}

impl<'a> MakeWriter<'a> for LineSender {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter(&self.0)
    }
}

/// Where one line goes.
pub(super) struct LineWriter<'a>(&'a Queue);

/// The formatting layer writes each event with one call.
impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
